"""Archives: the bytes we write, and what we refuse to read."""

import importlib.util
import io
import json
import os
import tarfile
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from helpers.mcu_program import SMALL_PROGRAM, with_names
from hypothesis import given, settings
from hypothesis import strategies as st

from tbn_compile.errors import ModelError, UsageError
from tbn_compile.targets.mcu.archive.archive import read_archive, read_program, write_archive
from tbn_compile.targets.mcu.archive.metadata import write_metadata
from tbn_compile.targets.mcu.program import Sample, Tensor

GOLDEN = Path(__file__).parent / "golden"
MEMBERS = [
    ".",
    "./codegen",
    "./codegen/host",
    "./codegen/host/include",
    "./codegen/host/include/tvmgen_default.h",
    "./codegen/host/src",
    "./codegen/host/src/default_lib0.c",
    "./codegen/host/src/default_lib1.c",
    "./metadata.json",
    "./parameters",
    "./parameters/default.params",
    "./self_test",
    "./self_test/input0.bin",
    "./self_test/output0.bin",
    "./self_test/tvmgen_default_self_test.c",
    "./self_test/tvmgen_default_self_test.h",
    "./src",
]
HOSTILE_NAMES = [
    "int",
    "struct {",
    "*/ #include </etc/passwd>",
    "a\nb\r\x1b[31m",
    "🤖 тест",
    "\u202egnp.exe",
    '"\\',
    "",
    "n" * 10_000,
    "%s%n{{ 7 * 7 }}{% raw %}",
]


@pytest.fixture
def archive(tmp_path):
    path = tmp_path / "small.tar"
    write_archive(SMALL_PROGRAM, path)
    return path


def members(path):
    with tarfile.open(path) as tar:
        return {m.name: tar.extractfile(m).read() if m.isfile() else None for m in tar}


def assert_same(left, right):
    assert replace(left, sample=None) == replace(right, sample=None)
    for kind in ("inputs", "outputs"):
        pairs = zip(getattr(left.sample, kind), getattr(right.sample, kind), strict=True)
        for one, other in pairs:
            assert one.dtype == other.dtype
            np.testing.assert_array_equal(one, other)


def golden_texts():
    spec = importlib.util.spec_from_file_location("renew", GOLDEN / "renew.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.texts()


@pytest.mark.parametrize("name", ["metadata.json", "tvmgen_default_self_test.c"])
def test_golden_files(name):
    golden = (GOLDEN / name).read_text(encoding="utf-8")
    assert golden_texts()[name] == golden, "run `python tests/mcu/golden/renew.py`"


class TestWriting:
    def test_members(self, archive):
        files = members(archive)
        assert list(files) == MEMBERS
        assert files["./parameters/default.params"].hex() == "b79c04054f8de5f7" + "00" * 24
        for name, text in SMALL_PROGRAM.sources.items():
            folder = "include" if name.endswith(".h") else "src"
            assert files[f"./codegen/host/{folder}/{name}"].decode() == text

    def test_no_owner_or_mode_of_this_machine(self, archive):
        with tarfile.open(archive) as tar:
            for member in tar:
                assert (member.uid, member.gid) == (0, 0)
                assert (member.uname, member.gname) == ("root", "root")
                assert member.mode == (0o755 if member.isdir() else 0o644)

    def test_same_bytes_for_the_same_program(self, archive, tmp_path, monkeypatch):
        other = tmp_path / "another folder" / "of another name.tar"
        other.parent.mkdir()
        monkeypatch.setattr(time, "time", lambda: 2e9)
        monkeypatch.setenv("TZ", "Pacific/Auckland")
        time.tzset()
        mask = os.umask(0o077)
        try:
            write_archive(SMALL_PROGRAM, other)
        finally:
            os.umask(mask)
            monkeypatch.undo()
            time.tzset()
        assert other.read_bytes() == archive.read_bytes()

    def test_source_date_epoch(self, tmp_path, monkeypatch):
        monkeypatch.setenv("SOURCE_DATE_EPOCH", "1700000000")
        write_archive(SMALL_PROGRAM, tmp_path / "a.tar")
        with tarfile.open(tmp_path / "a.tar") as tar:
            assert {member.mtime for member in tar} == {1_700_000_000}
        module = read_archive(tmp_path / "a.tar").metadata
        assert module.export_datetime == "2023-11-14 22:13:20Z"

    @pytest.mark.parametrize("value", ["", "now", "-1", "1e9", "٣", "99999999999999999999"])
    def test_bad_source_date_epoch(self, value, tmp_path, monkeypatch):
        monkeypatch.setenv("SOURCE_DATE_EPOCH", value)
        with pytest.raises(UsageError, match="SOURCE_DATE_EPOCH.*give seconds since 1970"):
            write_archive(SMALL_PROGRAM, tmp_path / "a.tar")
        assert list(tmp_path.iterdir()) == []

    def test_written_whole_or_not_at_all(self, tmp_path):
        path = tmp_path / "a.tar"
        path.write_bytes(b"older")
        double = np.zeros((1, 4), np.float64)
        bad = replace(
            SMALL_PROGRAM,
            outputs=(Tensor("y", "y", (1, 4), "float64"),),
            sample=Sample(SMALL_PROGRAM.sample.inputs, (double,)),
        )
        with pytest.raises(ModelError, match="C has no type for float64"):
            write_archive(bad, path)
        assert [p.name for p in tmp_path.iterdir()] == ["a.tar"]
        assert path.read_bytes() == b"older"

    def test_missing_folder(self, tmp_path):
        with pytest.raises(ModelError, match="cannot write"):
            write_archive(SMALL_PROGRAM, tmp_path / "missing" / "a.tar")

    def test_one_entry_for_a_function_that_several_operators_share(self):
        operators = [
            replace(SMALL_PROGRAM.operators[0], workspace_bytes=size, live_bytes=size)
            for size in (4, 12, 8)
        ]
        text = write_metadata(replace(SMALL_PROGRAM, operators=tuple(operators)), 0)
        module = json.loads(text)["modules"]["default"]
        assert module["memory"]["functions"]["operator_functions"] == [
            {
                "function_name": "tvmgen_default_difference",
                "workspace": [{"device": 1, "workspace_size_bytes": 12}],
            }
        ]
        assert len(module["tbn_compile"]["operators"]) == 3

    def test_program_without_operators(self, tmp_path):
        write_archive(replace(SMALL_PROGRAM, operators=()), tmp_path / "a.tar")
        contents = read_archive(tmp_path / "a.tar")
        assert contents.program.operators == ()
        assert contents.metadata.tbn_compile.peak_layer is None


class TestRoundTrip:
    def test_program(self, archive):
        assert_same(read_program(archive), SMALL_PROGRAM)

    @pytest.mark.parametrize("name", HOSTILE_NAMES, ids=range(len(HOSTILE_NAMES)))
    def test_hostile_names(self, name, tmp_path):
        program = with_names(name)
        write_archive(program, tmp_path / "a.tar")
        assert_same(read_program(tmp_path / "a.tar"), program)
        for member, content in members(tmp_path / "a.tar").items():
            if content is not None and not member.endswith((".bin", ".params")):
                assert content.isascii()
                assert member == "./metadata.json" or b"passwd" not in content

    def test_lone_surrogates_are_replaced(self, tmp_path):
        write_archive(with_names("a\udc80b"), tmp_path / "a.tar")
        assert read_program(tmp_path / "a.tar").model_name == "a?b"

    @pytest.mark.parametrize(
        "dtype,extremes",
        [
            ("float32", [np.nan, -np.inf, 1e-45, -0.0, 3.4e38]),
            ("bool", [False, True]),
            *(
                (dtype, [np.iinfo(dtype).min, np.iinfo(dtype).max])
                for dtype in ("int8", "uint8", "int16", "int32", "uint32", "int64", "uint64")
            ),
        ],
    )
    def test_element_types(self, dtype, extremes, tmp_path):
        values = np.array(extremes, dtype)
        program = replace(
            SMALL_PROGRAM,
            outputs=(Tensor("y", "y", values.shape, dtype),),
            sample=Sample(SMALL_PROGRAM.sample.inputs, (values,)),
        )
        write_archive(program, tmp_path / "a.tar")
        assert_same(read_program(tmp_path / "a.tar"), program)


def tar_of(path, *members):
    """A tar file of (name, content) pairs or ready TarInfos."""
    with tarfile.open(path, "w") as tar:
        for member in members:
            if isinstance(member, tarfile.TarInfo):
                tar.addfile(member)
                continue
            information = tarfile.TarInfo(member[0])
            information.size = len(member[1])
            tar.addfile(information, io.BytesIO(member[1]))
    return path


def member_of_kind(name, kind, target=""):
    information = tarfile.TarInfo(name)
    information.type, information.linkname = kind, target
    return information


def changed(archive, name, change):
    """The archive with one member's content changed, or the member gone (None)."""
    files = {n: c for n, c in members(archive).items() if c is not None}
    files[name] = change(files.get(name))
    return tar_of(archive, *((n, c) for n, c in files.items() if c is not None))


def with_metadata(archive, edit):
    """The archive with its metadata edited in place by `edit(module)`."""

    def change(content):
        metadata = json.loads(content)
        edit(metadata["modules"]["default"])
        return json.dumps(metadata).encode()

    return changed(archive, "./metadata.json", change)


class TestForeignArchives:
    def test_readable_without_our_additions(self, archive):
        def edit(module):
            del module["tbn_compile"]
            module["memory"]["functions"]["main"][0]["inputs"] = {
                "input_1:0": {"size": 32, "dtype": "float32"}
            }

        with_metadata(archive, edit)
        changed(archive, "./runtime/src/crt_config.c", lambda _: b"int x;")
        contents = read_archive(archive)
        assert contents.program is None
        assert contents.metadata.memory.functions.main[0].inputs["input_1:0"].size == 32
        assert contents.sources == SMALL_PROGRAM.sources
        with pytest.raises(ModelError, match="small.tar: not written by tbn-compile"):
            read_program(archive)

    def test_another_module_name(self, archive):
        changed(
            archive,
            "./metadata.json",
            lambda content: content.replace(b'"default": {', b'"other": {'),
        )
        with pytest.raises(ModelError, match="no module named default"):
            read_archive(archive)


class TestHostileArchives:
    """Each is refused in one line that begins with the file's name."""

    def refused(self, path, text):
        with pytest.raises(ModelError, match=text) as caught:
            read_archive(path)
        message = str(caught.value)
        assert message.startswith(path.name)
        assert message.isprintable()
        assert "\n" not in message

    @pytest.mark.parametrize(
        "name",
        ["../x.c", "/etc/x.c", "a/../../x.c", "./..", "a\\..\\x.c", "C:x.c", "a//b.c", "x\n.c"],
    )
    def test_name_outside_or_unclean(self, name, tmp_path):
        self.refused(tar_of(tmp_path / "a.tar", (name, b"")), "not named by a plain relative path")

    @pytest.mark.parametrize(
        "kind",
        [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.BLKTYPE, tarfile.FIFOTYPE],
    )
    def test_links_and_devices(self, kind, tmp_path):
        member = member_of_kind("metadata.json", kind, "/etc/passwd")
        self.refused(tar_of(tmp_path / "a.tar", member), "is not a regular file")

    def test_sparse_member(self, tmp_path):
        member = member_of_kind("metadata.json", tarfile.GNUTYPE_SPARSE)
        buffer = bytearray(member.tobuf(tarfile.GNU_FORMAT))
        buffer[386:398] = buffer[398:410] = buffer[483:495] = b"77777777777\0"
        buffer[148:156] = b" " * 8
        buffer[148:156] = b"%06o\0 " % sum(buffer)
        (tmp_path / "a.tar").write_bytes(bytes(buffer) + bytes(1024))
        self.refused(tmp_path / "a.tar", "is not a regular file")

    def test_same_member_twice(self, tmp_path):
        path = tar_of(tmp_path / "a.tar", ("metadata.json", b"{}"), ("./metadata.json", b"{}"))
        self.refused(path, "holds metadata.json twice")

    def test_too_many_members(self, tmp_path):
        path = tar_of(tmp_path / "a.tar", *((f"a{i}", b"") for i in range(5000)))
        self.refused(path, "more than 4096 members")

    def test_too_large(self, tmp_path):
        path = tmp_path / "a.tar"
        with path.open("wb") as file:
            file.truncate(2**28 + 1)
        self.refused(path, "larger than")

    @pytest.mark.parametrize("size", [-512, 2**40])
    def test_size_that_lies(self, size, tmp_path):
        member = tarfile.TarInfo("metadata.json")
        member.size = size
        path = tmp_path / "a.tar"
        path.write_bytes(member.tobuf(tarfile.GNU_FORMAT) + bytes(1024))
        self.refused(path, "claims|damaged")

    @pytest.mark.parametrize("kind", [tarfile.XHDTYPE, tarfile.GNUTYPE_LONGNAME])
    def test_extended_header_that_claims_gigabytes(self, kind, tmp_path):
        """Nothing is allocated for it: 64 GiB would fail."""
        member = member_of_kind("metadata.json", kind)
        member.size = 2**36
        path = tmp_path / "a.tar"
        path.write_bytes(member.tobuf(tarfile.GNU_FORMAT) + bytes(1024))
        self.refused(path, "damaged|holds no metadata")

    def test_chain_of_extended_headers(self, tmp_path):
        member = member_of_kind("metadata.json", tarfile.GNUTYPE_LONGNAME)
        path = tmp_path / "a.tar"
        path.write_bytes(member.tobuf(tarfile.GNU_FORMAT) * 5000)
        self.refused(path, "damaged")

    def test_negative_size_in_an_extended_header(self, tmp_path):
        member = tarfile.TarInfo("metadata.json")
        member.pax_headers = {"size": "-1024"}
        path = tmp_path / "a.tar"
        path.write_bytes(member.tobuf(tarfile.PAX_FORMAT) + bytes(1024))
        self.refused(path, "claims|damaged|plain")

    def test_compressed(self, archive, tmp_path):
        with tarfile.open(tmp_path / "a.tar", "w:gz") as tar:
            tar.add(archive, "metadata.json")
        self.refused(tmp_path / "a.tar", "not an uncompressed tar file")

    def test_cut_short(self, archive):
        content = archive.read_bytes()
        archive.write_bytes(content[: content.index(b'"modules"')])
        self.refused(archive, "damaged")

    def test_empty_missing_or_folder(self, tmp_path):
        (tmp_path / "empty.tar").write_bytes(b"")
        (tmp_path / "folder.tar").mkdir()
        self.refused(tmp_path / "empty.tar", "not an uncompressed tar file")
        self.refused(tmp_path / "missing.tar", "no such file")
        self.refused(tmp_path / "folder.tar", "not a regular file")

    def test_no_metadata(self, tmp_path):
        self.refused(tar_of(tmp_path / "a.tar", ("x", b"")), "holds no metadata.json")

    @pytest.mark.parametrize(
        "text",
        [
            b"",
            b"[]",
            b"\xff",
            b"[" * 100_000,
            b"1" * 100_000,
            b'{"version": 7}',
            b'{"version": 1000, "modules": {}}',
            b'{"version": "7", "modules": {}}',
            b'{"version": 7, "modules": {"default": 5}}',
        ],
        ids=range(9),
    )
    def test_bad_json(self, text, tmp_path):
        self.refused(tar_of(tmp_path / "a.tar", ("metadata.json", text)), "metadata.json: ")

    @pytest.mark.parametrize(
        "edit",
        [
            lambda m: m["memory"]["functions"].update(main=[]),
            lambda m: m["memory"]["functions"]["main"][0].update(workspace_size_bytes=-1),
            lambda m: m["memory"]["functions"]["main"][0].update(workspace_size_bytes=2**64),
            lambda m: m["memory"]["functions"]["main"][0].update(workspace_size_bytes=True),
            lambda m: m["tbn_compile"].update(schema_version=2),
            lambda m: m["tbn_compile"].update(core=["cortex-m4"]),
            lambda m: m["tbn_compile"]["inputs"][0].update(identifier="x; system(0)"),
            lambda m: m["tbn_compile"]["inputs"][0].update(identifier="x\n"),
            lambda m: m["tbn_compile"]["inputs"][0].update(shape=[-1, -8]),
            lambda m: m["tbn_compile"]["inputs"][0].update(shape=[2**30, 2**30]),
            lambda m: m["tbn_compile"]["inputs"].append(m["tbn_compile"]["inputs"][0]),
            lambda m: m["tbn_compile"]["operators"][0].update(function_name="f()"),
        ],
        ids=range(12),
    )
    def test_bad_fields(self, edit, archive):
        with_metadata(archive, edit)
        self.refused(archive, "metadata.json: ")

    def test_unknown_core(self, archive):
        with_metadata(archive, lambda m: m["tbn_compile"].update(core="z80\n"))
        self.refused(archive, "unknown core, 'z80.'; .*cortex-m4")

    def test_element_type_without_meaning_in_c(self, archive):
        with_metadata(archive, lambda m: m["tbn_compile"]["inputs"][0].update(dtype="object"))
        self.refused(archive, "C has no type for object")

    def test_sample_of_another_size(self, archive):
        changed(archive, "./self_test/input0.bin", lambda content: content[:-1])
        self.refused(archive, "self_test/input0.bin holds 31 bytes instead of 32")

    def test_sample_missing(self, archive):
        changed(archive, "./self_test/output0.bin", lambda _: None)
        self.refused(archive, "self_test/output0.bin holds 0 bytes")

    def test_sources_missing_or_more(self, archive):
        changed(archive, "./codegen/host/src/default_lib2.c", lambda _: b"")
        self.refused(archive, "holds other sources than default_lib0.c")

    def test_two_sources_of_one_name(self, archive):
        changed(archive, "./codegen/host/src/more/default_lib1.c", lambda _: b"")
        self.refused(archive, "holds two sources named default_lib1.c")

    def test_source_that_is_no_text(self, archive):
        changed(archive, "./codegen/host/src/default_lib1.c", lambda _: b"\xff")
        self.refused(archive, "default_lib1.c is not text")


@pytest.fixture(scope="module")
def archive_bytes(tmp_path_factory):
    path = tmp_path_factory.mktemp("sound") / "a.tar"
    write_archive(SMALL_PROGRAM, path)
    return path.read_bytes()


@settings(max_examples=300, deadline=None)
@given(data=st.data())
def test_damaged_headers_never_escape_as_another_error(archive_bytes, tmp_path_factory, data):
    content = bytearray(archive_bytes)
    headers = [i for i in range(0, len(content), 512) if content[i + 257 : i + 262] == b"ustar"]
    fields = [slice(0, 8), slice(124, 136), slice(156, 157), slice(257, 265), slice(345, 355)]
    for _ in range(data.draw(st.integers(1, 3))):
        header, field = data.draw(st.sampled_from(headers)), data.draw(st.sampled_from(fields))
        block = content[header : header + 512]
        length = field.stop - field.start
        kinds = [bytes([byte]) * length for byte in b"01234567KLSVxgXD"]
        block[field] = data.draw(
            st.binary(min_size=length, max_size=length) | st.sampled_from(kinds)
        )
        block[148:156] = b" " * 8
        block[148:156] = b"%06o\0 " % sum(block)
        content[header : header + 512] = block
    path = tmp_path_factory.getbasetemp() / "damaged.tar"
    path.write_bytes(content)
    try:
        read_archive(path)
    except ModelError as error:
        assert str(error).startswith("damaged.tar: ")
        assert str(error).isprintable()
