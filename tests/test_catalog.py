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
