"""Block strings: what they mean, and that a string that would lose a state is refused with a way to mend it."""

import dataclasses

import pytest

from ppl_models.hvae import HVAE, PRESETS
from ppl_models.hvae.blocks import DecoderCell, EncoderCell, groups, parse_decoder, parse_encoder
from ppl_models.program import spec_from_json


def test_tokens_become_cells_in_order():
    assert parse_encoder("8x2,8d2,4") == (EncoderCell(8), EncoderCell(8), EncoderCell(8, 2), EncoderCell(4))
    assert parse_decoder("1x1, 4m1 ,4x2") == (DecoderCell(1), DecoderCell(4, 1), DecoderCell(4), DecoderCell(4))


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "enc is empty"),
        ("8x2,,4x1", "block ''"),
        ("8y2", "block '8y2'"),
        ("8x", "block '8x'"),
        ("8m4", "'m' belongs to dec"),
        ("0x1", "at least 1"),
        ("8x0", "at least 1"),
        ("8d3", "divide 8"),
        ("8d1", "at least 2"),
        ("8x1,4x1", "the blocks before it leave 8.*8dK"),
        ("8d2,8x1", "leave 4"),
    ],
)
def test_wrong_encoder_strings(text, words):
    with pytest.raises(ValueError, match=words):
        parse_encoder(text)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (" ", "dec is empty"),
        ("4d2", "'d' belongs to enc"),
        ("1x1,4x2", "state at 1 would be lost.*'4m1'"),
        ("4x1,2x1", "coarse to fine"),
        ("4m1", r"there are none"),
        ("1x1,4m2", r"there are \[1\]"),
        ("2x1,4m4", "coarser"),
        ("2x1,3m2", "not a multiple"),
        ("1x1,2m1,4m1", "skips resolution 2.*'4m2'"),
    ],
)
def test_wrong_decoder_strings(text, words):
    with pytest.raises(ValueError, match=words):
        parse_decoder(text)


GOOD = dict(enc="8x1,8d8,1x1", dec="1x2,8m1", shape=(8, 8), levels=17, width=16)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"shape": (28, 28)}, "starts at resolution 8.*expected enc to start at 28, or at 1"),
        ({"shape": (8, 6)}, "only square images"),
        ({"shape": ()}, "positive integers"),
        ({"dec": "1x2"}, "ends at resolution 1, expected 8.*'8m1'"),
        ({"dec": "2x1,8m2"}, "resolution 2, for which enc.*it reaches"),
        ({"width": 0}, "width"),
        ({"mid_ratio": 0.01}, "no channel inside a block"),
        ({"dropout": 1.0}, "dropout"),
        ({"levels": 1}, "levels"),
    ],
)
def test_wrong_specs(changes, words):
    with pytest.raises(ValueError, match=words):
        HVAE(**{**GOOD, **changes})


@pytest.mark.parametrize(("field", "value"), [("zdim", 2.5), ("share", "level"), ("encoder", "wavelet"), ("depth", 3)])
def test_wrong_files_name_the_field(field, value):
    with pytest.raises(ValueError, match=field):
        spec_from_json({"family": "hvae", "preset": "tiny", "spec": {field: value}})


def test_tying_joins_plain_cells_of_a_resolution_only():
    spec = dataclasses.replace(PRESETS["digits8"], share="resolution")
    assert spec.encoder_groups == (0, 0, 1, 2, 2, 3, 4)  # 8, 8, 8d2, 4, 4, 4d4, 1
    assert spec.decoder_groups == (0, 1, 2, 2, 3, 4, 4)  # 1, 4m1, 4, 4, 8m4, 8, 8
    assert groups(spec.decoder_cells, False) == tuple(range(7))


def test_site_names_sort_top_down():
    spec = HVAE(enc="1x1", dec="1x120", shape=(4,), width=8)
    assert spec.latents[:2] == ("z_000", "z_001")
    assert list(spec.latents) == sorted(spec.latents)
