"""Dimensions that are computed from names."""

import pytest

from msconv_deploy.errors import BadInputError
from msconv_deploy.ops.symbolic import NotAnExtentError, extent, names_in, size_text

SIZE = {"H": 7, "W": 12, "x[2]": 5, "batch size": 3}


@pytest.mark.parametrize(
    ("dim", "names", "value"),
    [
        (9, [], 9),
        (0, [], 0),
        ("H", ["H"], 7),
        ("2*H", ["H"], 14),
        ("H + W", ["H", "W"], 19),
        ("W - H", ["W", "H"], 5),
        ("-H + W", ["W", "H"], 5),
        ("W // 5", ["W"], 2),
        ("W / 5 * 5", ["W"], 12),
        ("(H - 1) // 2 + 1", ["H"], 4),
        ("H - 7", ["H"], 0),
        ("H % 4", ["H"], 3),
        ("x[2]", ["x[2]"], 5),
        ("batch size", ["batch size"], 3),
    ],
)
def test_a_dimension_has_names_and_a_value(dim, names, value):
    assert sorted(names_in(dim)) == sorted(names)
    found = extent(dim, SIZE)
    assert (found, type(found)) == (value, int)


@pytest.mark.parametrize(
    ("dim", "message"),
    [
        ("N", "^dimension N: no extent is given for N$"),
        ("2*N", r"^dimension 2\*N: no extent is given for N$"),
        ("y[0]", r"^dimension y\[0\]: no extent is given for y\[0\]$"),
        ("H // 0", "^dimension H // 0: cannot be computed for H=7,W=12,.*; give the inputs as a file$"),
        ("H ** 2", "cannot be computed"),
        ("~H", "cannot be computed"),
        ("'a'", "cannot be computed"),
        ("W / 5", "^dimension W / 5 is 2.4 for H=7,.*: not an extent$"),
        ("H - 8", "^dimension H - 8 is -1 for H=7"),
    ],
)
def test_what_has_no_value_says_why(dim, message):
    with pytest.raises(BadInputError, match=message):
        extent(dim, SIZE)


@pytest.mark.parametrize("text", ["open('f')", "H if W else 1", "[H]", "lambda: 1", "H.W"])
def test_code_is_a_name_like_any_other(text):
    assert names_in(text) == [text]
    assert extent(text, {text: 4}) == 4


@pytest.mark.parametrize(
    "dim", ["H*1e400", "H*1e400 - H*1e400", "9" * 290 + "/H", "H" + "*9999999999" * 20, "W / 5", "H - 8"]
)
def test_numbers_out_of_range_are_no_extents(dim):
    with pytest.raises(NotAnExtentError, match="not an extent|cannot be computed"):
        extent(dim, SIZE)


@pytest.mark.parametrize(
    "dim", ["-" * 5000 + "H", "(" * 140 + "H" + ")" * 140 + "+" * 3, "1+" * 20000 + "H", "H\0", "9" * 5000]
)
def test_what_pythons_parser_is_not_made_for_is_a_name(dim):
    assert names_in(dim) == [dim]
    assert extent(dim, {dim: 3}) == 3


def test_sizes_are_written_in_their_order():
    assert size_text({"N": 4, "H": 17}) == "N=4,H=17"
    assert size_text({}) == "static"
