"""The catalogue's pages: every name once, in the order of the whole names."""

from hypothesis import given
from hypothesis import strategies as st
from sqlalchemy import create_engine

from mirror.manifest import Descriptor
from mirror.names import Digest, Repository, Tag
from mirror.store import links, remembered
from mirror.store.catalog import repositories_of, repositories_of_all
from mirror.store.schema import tables, tags

CONTENTS = [Descriptor(Digest.of(body), "", len(body)) for body in (b"one", b"two")]
# Some begin like others, and go on with what comes before a slash, or after it.
UPSTREAMS = st.sampled_from(["a", "a-b", "a.b", "a0", "b:5000"])
NAMES = st.sampled_from(["x", "x-y", "x/y", "x.y", "y", "z"])
REPOSITORIES = st.sets(st.builds(Repository, UPSTREAMS, NAMES))
AFTER = st.one_of(
    st.text("abxyz/-.0:", max_size=6),
    st.builds("{}/{}".format, UPSTREAMS, NAMES | st.just("")),
)


@given(REPOSITORIES, REPOSITORIES, AFTER, UPSTREAMS, st.integers(0, 9))
def test_a_page(
    linked: set[Repository], tagged: set[Repository], after: str, upstream: str, limit: int
) -> None:
    engine = create_engine("sqlite://")
    with engine.begin() as connection:
        tables.create_all(connection)
        for repository in linked:
            rows = [links.row_of(repository, links.Link(each, proven=True)) for each in CONTENTS]
            connection.execute(links.note(), rows)
        for repository in tagged:
            tag = remembered.RememberedTag(CONTENTS[0].digest, 1.0)
            row = remembered.row_of_tag(repository, Tag("latest"), tag)
            connection.execute(remembered.upsert_into(tags), [row])
        known = sorted(linked | tagged, key=str)
        assert (
            repositories_of_all(connection, after, limit)
            == [each for each in known if str(each) > after][:limit]
        )
        assert (
            repositories_of(connection, upstream, after, limit)
            == [each for each in known if each.upstream == upstream and each.name > after][:limit]
        )
    engine.dispose()


def test_a_repository_with_many_contents_costs_a_page_no_more() -> None:
    many, few = Repository("docker.io", "many"), Repository("docker.io", "more/few")
    engine, hundreds_of_steps = create_engine("sqlite://"), []
    with engine.begin() as connection:
        tables.create_all(connection)
        held = [Descriptor(Digest.of(str(number).encode()), "", 1) for number in range(2_000)]
        rows = [links.row_of(many, links.Link(each, proven=True)) for each in held]
        connection.execute(links.note(), rows)
        connection.execute(links.note(), [links.row_of(few, links.Link(held[0], proven=True))])
        driver = connection.connection.driver_connection
        assert driver is not None
        driver.set_progress_handler(lambda: hundreds_of_steps.append(1), 100)
        assert repositories_of_all(connection, "", 10) == [many, few]
        driver.set_progress_handler(None, 0)
    engine.dispose()
    assert len(hundreds_of_steps) < 20
