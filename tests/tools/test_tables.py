import pytest

from tbn_compile import tables


@pytest.mark.parametrize(
    ("amount", "text"),
    [
        (0, "0 B"), (1, "1 B"), (999, "999 B"), (1000, "1 kB"), (1023, "1.02 kB"),
        (407_264, "407 kB"), (999_499, "999 kB"), (999_500, "1 MB"), (1_234_000_000, "1.23 GB"),
        (10**18, "1e+03 PB"),
    ],
)  # fmt: skip
def test_quantity(amount, text):
    assert tables.quantity(amount, "B") == text


def test_quantity_without_a_unit():
    assert (tables.quantity(512), tables.quantity(25_200)) == ("512", "25.2 k")
