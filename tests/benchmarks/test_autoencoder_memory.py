import pytest

from telecine.autoencoders import CausalVAE
from telecine.autoencoders.diffusers import DiffusersAutoencoder
from telecine.settings import CausalVAEConfig

from ..autoencoders.tiny_models import tiny_model


def tiny_causal_vae():
    return CausalVAE(CausalVAEConfig(base_channels=4, latent_channels=2))


@pytest.fixture
def memory(benchmark_module, monkeypatch):
    """The script, with tiny models, whose steps run once in this process and claim a peak of 1 GiB."""

    def peak(make, *arguments):
        make(*arguments)()
        return 2**30

    module = benchmark_module("autoencoder_memory")
    monkeypatch.setattr(module, "extra_peak", peak)
    monkeypatch.setattr(module, "LENGTHS", (9, 17))
    monkeypatch.setitem(module.MODELS, "CausalVAE small", tiny_causal_vae)
    monkeypatch.setitem(module.MODELS, "Wan 2.1", lambda: DiffusersAutoencoder(tiny_model("wan")))
    return module


@pytest.mark.slow
def test_chunks(memory, tmp_path, capsys, tables_in):
    memory.compare_chunks(["CausalVAE small"], 32, tmp_path)
    ((header, rows),) = tables_in(capsys.readouterr().out)
    assert header[2:] == ["whole", "chunks", "videos and objective", "kept between chunks", "rest"]
    assert [row[1] for row in rows] == ["9", "17"]
    assert all(row[2:5] == ["1024"] * 3 for row in rows)
    assert (tmp_path / "temporal_chunks.png").stat().st_size > 10_000


@pytest.mark.slow
def test_what_is_kept_between_chunks_grows_with_their_number(memory):
    few, many = (memory.held_between_chunks("CausalVAE small", frames, 16, 8) for frames in (17, 33))
    num_chunks, num_layers, values_of_a_frame = 2, 4, 8 * 2 * 2
    assert many - few == num_chunks * num_layers * values_of_a_frame * 4


@pytest.mark.slow
def test_checkpointing(memory, capsys, tables_in, monkeypatch):
    monkeypatch.setattr(memory, "SIZES", ((5, 16),))
    memory.compare_checkpointing()
    ((_, rows),) = tables_in(capsys.readouterr().out)
    assert rows == [["5 x 16 x 16", "1024", "1024", "1.00"]]
