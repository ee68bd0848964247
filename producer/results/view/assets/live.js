// The progress of a run that is not finished, read again every two seconds.
const SECONDS = 2;

async function follow() {
  const node = document.getElementById("progress");
  try {
    const answer = await fetch(node.dataset.source);
    if (answer.ok) node.replaceWith(new DOMParser().parseFromString(await answer.text(), "text/html").getElementById("progress"));
  } catch {
    // the server or the network is away for a while
  }
  if (document.getElementById("progress").dataset.finished !== "true") setTimeout(follow, 1000 * SECONDS);
}

setTimeout(follow, 1000 * SECONDS);
