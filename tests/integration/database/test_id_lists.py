"""The condition that an id is one of many, on both databases."""

from __future__ import annotations

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy import Engine, bindparam, select, update

from models.database.id_lists import IdList, is_among
from models.schema.job import Job, rows_to_change
from tests.support.table_rows import column_of, insert_run

NUMBERS = st.lists(st.integers(0, 40) | st.sampled_from([-1, 2**31, 2**63 - 1]), max_size=40)


@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(numbers=NUMBERS)
def test_it_finds_what_in_finds(database: Engine, numbers: list[int]) -> None:
    ids = column_of(database, Job.id) or insert_run(database, 30)
    with database.begin() as connection:
        wanted = {ids[number] if number < len(ids) else number for number in numbers}
        found = connection.execute(select(Job.id).where(is_among(Job.id, wanted))).scalars()
        assert set(found) == wanted & set(ids)


def test_a_statement_made_once_takes_any_number(database: Engine) -> None:
    ids = insert_run(database, 5)
    named = is_among(Job.id, bindparam("ids", type_=IdList()))
    statement = update(Job).where(rows_to_change(named)).values(worker="w").returning(Job.id)
    for chosen in ([], ids[:1], ids[:3], ids):
        with database.begin() as connection:
            assert sorted(connection.execute(statement, {"ids": chosen}).scalars()) == chosen
    texts = {str(select(Job.id).where(is_among(Job.id, each)).compile(database)) for each in (ids[:1], ids)}
    assert len(texts) == 1
    assert column_of(database, Job.worker) == ["w"] * 5
