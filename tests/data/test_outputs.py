"""Outputs are local, and lie in no folder of the data."""

import pytest

from telecine.data.outputs import check_output

from .videos import touch


def test_outputs_do_not_lie_beside_the_data(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(
        ValueError,
        match=r"`output_dir` must be a path on this machine, but got 's3://bucket/run'\.",
    ):
        check_output("output_dir", None, "s3://bucket/run")
    touch(tmp_path, "v/a.mp4", "v/w/b.txt", "[x1].mp4")
    refused = [(data, tmp_path) for data in (".", tmp_path, f"{tmp_path}/../{tmp_path.name}")]
    refused += [
        (data, "v") for data in ("v/*.mp4", "v/**/*.mp4", "{v/w,v}/", "{v/w/a.mp4,v/[ab].mp4}")
    ]
    for data, output in refused:
        with pytest.raises(
            ValueError, match="`output_dir` must be another folder than the data, but got "
        ):
            check_output("output_dir", data, output)
    for data in (
        "run",
        tmp_path / "gone",
        "[x1].mp4",
        "v/a.mp4",
        "v/{a,b}.mp4",
        "s3://bucket/*.mp4",
        "v/*.mp4",
        None,
    ):
        check_output("output_dir", data, tmp_path)
