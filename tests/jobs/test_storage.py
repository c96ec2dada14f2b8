"""What needs no store: paths of one, the settings that name them, and what engines are told."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from jobs.contracts.errors import BadSettings, EngineMissing, FolderTaken
from jobs.lake import Lake
from jobs.settings import CONFIG_VARIABLE, S3, Settings, load_settings
from jobs.spark import JARS_VARIABLE, jars_path, require_engine
from jobs.storage import S3Path, delta_options, hadoop_options, local_copy, location, new_folder, unreachable, whole_folder, write_whole

STORE = S3(endpoint="http://127.0.0.1:9000")


@pytest.fixture
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    path = tmp_path / "nightjar.toml"
    monkeypatch.setenv(CONFIG_VARIABLE, str(path))
    return path


def test_a_place_of_a_store_is_relative_to_nothing(config: Path) -> None:
    config.write_text('lake = "s3://bucket/lake/"\n[landing]\nfolder = "logs"\n[s3]\nendpoint = "http://127.0.0.1:9000"\n')
    settings = load_settings()
    assert settings.landing_path == config.parent / "logs"
    assert settings.lake_path == S3Path("bucket/lake", STORE)
    assert Lake(settings.lake_path, ("view",)).path("gold.transitions") == "s3://bucket/lake/gold/transitions"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('lake = "s3a://bucket/lake"\n', r"lake: .*expected a path, or s3://bucket/folder, got 's3a://bucket/lake'"),
        ('lake = "s3://"\n', r"lake: .*expected a path, or s3://bucket/folder"),
        ('[landing]\nfolder = "gs://bucket/x"\n', r"landing\.folder: .*expected a path, or s3://bucket/folder"),
        ('[s3]\nendpoint = "127.0.0.1:9000"\n', r"s3\.endpoint: String should match pattern"),
        ('[s3]\nsecret = "x"\n', r"s3\.secret: Extra inputs are not permitted"),
    ],
)
def test_a_place_that_is_none_is_named(config: Path, text: str, message: str) -> None:
    config.write_text(text)
    with pytest.raises(BadSettings, match=message):
        load_settings()


def test_paths_of_a_store_answer_as_local_ones_do() -> None:
    there, here = location("s3://bucket/a", STORE), location("/bucket/a", STORE)
    assert isinstance(there, S3Path)
    assert isinstance(here, Path)
    for path in (there / "ds=1" / "x.json.gz", here / "ds=1" / "x.json.gz"):
        assert (path.name, path.suffix, path.parent.name, path.parts[-3:]) == ("x.json.gz", ".gz", "ds=1", ("a", "ds=1", "x.json.gz"))
    assert (there / "b/c").relative_to(there).as_posix() == "b/c"
    assert str(there / "b") == (there / "b").as_uri() == "s3://bucket/a/b"
    assert there.bucket == "bucket"
    assert there != location("s3://bucket/a", S3())


def test_engines_are_told_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("AWS_REGION", "AWS_DEFAULT_REGION"):
        monkeypatch.delenv(name, raising=False)
    assert delta_options(STORE) == {
        "aws_endpoint": "http://127.0.0.1:9000",
        "aws_allow_http": "true",
        "aws_region": "us-east-1",
        "aws_conditional_put": "etag",
    }
    assert hadoop_options(STORE)["fs.s3a.path.style.access"] == "true"
    assert hadoop_options(STORE)["fs.s3a.connection.ssl.enabled"] == "false"
    monkeypatch.setenv("AWS_DEFAULT_REGION", "eu-north-1")
    assert delta_options(S3()) == {"aws_region": "eu-north-1", "aws_conditional_put": "etag"}
    assert "fs.s3a.endpoint" not in hadoop_options(S3())
    assert hadoop_options(S3(region="eu-west-1"))["fs.s3a.endpoint.region"] == "eu-west-1"


def test_a_refusal_is_told_in_one_line() -> None:
    long = OSError("When getting information for bucket 'b': AWS Error ACCESS_DENIED during HeadBucket operation: No response body. (Request ID: x)")
    assert str(unreachable("The bucket b", STORE, long)).startswith(
        "The bucket b can't be reached at http://127.0.0.1:9000: ACCESS_DENIED during HeadBucket operation: No response body. Look at"
    )
    rust = OSError("Generic S3 error\n  \x1b[31m↳\x1b[0m Error performing list request\n   \x1b[31m↳\x1b[0m 404 Not Found")
    assert "reached at AWS: Error performing list request 404 Not Found. Look" in str(unreachable("x", S3(), rust))
    other = OSError('Generic S3 error: Error performing PUT http://127.0.0.1/b in 2ms - Connection refused\n\nDebug source:\nGeneric {\n    store: "S3",\n}')
    assert "reached at AWS: Error performing PUT http://127.0.0.1/b in 2ms - Connection refused. Look" in str(unreachable("x", S3(), other))


def test_a_lake_on_s3_without_its_jars_is_a_message(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for jar in jars_path().resolve().glob("io.*.jar"):
        (tmp_path / jar.name).symlink_to(jar)
    monkeypatch.setenv(JARS_VARIABLE, str(tmp_path))
    require_engine(Settings())
    with pytest.raises(EngineMissing, match=r"A lake on S3 needs org.apache.hadoop_hadoop-aws.*Run `nightjar jars --s3`"):
        require_engine(Settings(lake="s3://bucket/lake"))


def test_a_new_folder_appears_whole_or_not_at_all(tmp_path: Path) -> None:
    """Also where an empty one stands; not over what somebody else has put there meanwhile."""
    folder = tmp_path / "above" / "new"
    with pytest.raises(FileNotFoundError), new_folder(folder) as draft:
        (draft / "none" / "a").touch()
    assert list(tmp_path.iterdir()) == []
    folder.mkdir(parents=True)
    with new_folder(folder) as draft:
        (draft / "a").write_text("1")
        assert list(folder.iterdir()) == []
    assert [path.read_text() for path in folder.iterdir()] == ["1"]
    other = folder.with_name("other")
    with pytest.raises(FolderTaken, match="holds something already"), new_folder(other):
        shutil.copytree(folder, other)
    assert sorted(path.relative_to(folder.parent).as_posix() for path in folder.parent.rglob("*")) == ["new", "new/a", "other", "other/a"]


def test_local_files_and_folders_appear_whole(tmp_path: Path) -> None:
    write_whole(tmp_path / "reports" / "a.html", "é")
    assert [path.name for path in (tmp_path / "reports").iterdir()] == ["a.html"]
    folder = tmp_path / "p"
    for text in ("1", "2"):
        with whole_folder(folder, last="m") as draft:
            draft.mkdir()
            (draft / "m").write_text(text)
            assert not folder.exists() or (folder / "m").read_text() == "1"
        assert (folder / "m").read_text() == text
    with local_copy(folder / "m", iter([b"2"])) as copy:
        assert copy == folder / "m"
