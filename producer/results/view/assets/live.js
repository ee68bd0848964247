// The progress of a run that is not finished, read again every two seconds.
const SECONDS = 2;

async function follow() {
  const node = document.getElementById("progress");
  try {
    const answer = await fetch(node.dataset.source);
    if (answer.ok) replace(node, new DOMParser().parseFromString(await answer.text(), "text/html").getElementById("progress"));
  } catch {
    // the server or the network is away for a while
  }
  if (document.getElementById("progress").dataset.finished !== "true") setTimeout(follow, 1000 * SECONDS);
}

// The link that has the focus keeps it, or keys would begin at the top of the page again.
function replace(node, next) {
  const focused = document.activeElement?.closest("#progress a")?.getAttribute("href");
  node.replaceWith(next);
  if (focused) [...next.querySelectorAll("a")].find((each) => each.getAttribute("href") === focused)?.focus({ preventScroll: true });
}

setTimeout(follow, 1000 * SECONDS);
