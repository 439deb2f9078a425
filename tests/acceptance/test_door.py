"""The server's door, and what a night leaves behind: no secret, no pickle.

One real night against a server that asks for a password and for CSRF tokens, with secrets in its
environment and Prefect told to keep every result, answers all questions of this file.
"""

import base64
import io
import json
import os
import pickle
import pickletools
import subprocess
import sys
import urllib.parse
import zipfile
from pathlib import Path

import httpx
import numpy as np
import psutil
import pyarrow.parquet as pq
import pytest

from nightfold.experiment import shipped

pytestmark = pytest.mark.slow

USER_AND_PASSWORD = "night:Gate+of/horn#1"
SECRETS = {
    "PREFECT_API_AUTH_STRING": USER_AND_PASSWORD,
    "PREFECT_SERVER_DATABASE_CONNECTION_URL": "postgresql+asyncpg://u:Ivory%2Bgate-2@h/prefect",
    "AWS_SECRET_ACCESS_KEY": "wJalrXUt+nFEMI/K7MDENG+planted",
    "NIGHTFOLD_SIGNING_PASSPHRASE": "over the moon & back",
    "DATABASE_PASSWORD": "plain-old-planted-password",
}
PARTS_OF_SECRETS = ("Gate+of/horn#1", "Ivory%2Bgate-2", "Ivory+gate-2")


@pytest.fixture(scope="module")
def server_settings():
    """The server asks for a password and for CSRF tokens."""
    return {
        "PREFECT_SERVER_API_AUTH_STRING": USER_AND_PASSWORD,
        "PREFECT_SERVER_CSRF_PROTECTION_ENABLED": "true",
        "PREFECT_API_AUTH_STRING": USER_AND_PASSWORD,
    }


def nightfold(bench, *arguments, **environment):
    return subprocess.run(
        [sys.executable, "-c", "from flows.cli import main; main()", *map(str, arguments)],
        cwd=shipped(),
        env={**bench.env, **environment},
        capture_output=True,
        text=True,
        timeout=280,
    )


@pytest.fixture(scope="module")
def keys(tmp_path_factory):
    """A private key with a passphrase and its public half, made by openssl."""
    folder = tmp_path_factory.mktemp("keys")
    secret = f"pass:{SECRETS['NIGHTFOLD_SIGNING_PASSPHRASE']}"
    for command in (
        ("genpkey", "-algorithm", "ed25519", "-aes256", "-pass", secret, "-out", "k.pem"),
        ("pkey", "-in", "k.pem", "-passin", secret, "-pubout", "-out", "k.pub.pem"),
    ):
        subprocess.run(["openssl", *command], cwd=folder, check=True, capture_output=True)
    return {
        "NIGHTFOLD_SIGNING_KEY": str(folder / "k.pem"),
        "NIGHTFOLD_PUBLIC_KEY": str(folder / "k.pub.pem"),
    }


@pytest.fixture(scope="module")
def left(bench, keys, tmp_path_factory):
    """Every file that a night and its server have left, what they said included."""
    artifacts = tmp_path_factory.mktemp("artifacts")
    night = nightfold(
        bench,
        *("retrain", "--dataset", "digits", "--limit", "300", "--folds", "2", "--epochs", "2"),
        *("--candidates", "baseline", "--workers", "2", "--artifacts", artifacts),
        *("--run-id", "night-1"),
        **SECRETS,
        **keys,
        # By Prefect's default that would be pickles of whatever tasks and flows return.
        PREFECT_RESULTS_PERSIST_BY_DEFAULT="true",
    )
    said = tmp_path_factory.mktemp("said") / "night.log"
    said.write_text(night.stdout + night.stderr)
    assert night.returncode == 0, said.read_text()
    folders = (artifacts, Path(bench.env["PREFECT_HOME"]), bench.logs, said.parent)
    files = [file for folder in folders for file in sorted(folder.rglob("*")) if file.is_file()]
    return {"artifacts": artifacts, "files": files}


def disguises(secret):
    """The secret as it is, and as text formats carry it."""
    yield secret.encode()
    yield json.dumps(secret)[1:-1].encode()
    yield urllib.parse.quote(secret, safe="").encode()
    yield urllib.parse.quote_plus(secret).encode()
    yield secret.encode().hex().encode()
    for shift in range(3):
        # In base64 a text looks different by its position; the ends mix with what is beside it.
        encoded = base64.b64encode(b"x" * shift + secret.encode())
        yield encoded[4 if shift else 0 : -4]


def contents(file):
    """The bytes of a file, and of what is compressed in it."""
    whole = file.read_bytes()
    yield whole
    if zipfile.is_zipfile(file):
        with zipfile.ZipFile(file) as archive:
            for name in archive.namelist():
                yield archive.read(name)
    if file.suffix == ".parquet":
        table = pq.read_table(file)
        yield repr(table.schema.metadata).encode()
        for name in table.column_names:
            if name != "probabilities":
                yield "\n".join(map(str, table[name].unique().to_pylist())).encode()


def secrets_in(file, secrets):
    found = list(contents(file))
    return [s for s in secrets if any(d in whole for d in disguises(s) for whole in found)]


def pickles_in(file):
    """Places of a file, or of what is in it, where a pickle starts."""
    found = []
    for whole in contents(file):
        if is_pickle(whole, least=2 if whole[:1] == b"\x80" else 4):
            found.append(0)
        for protocol in (4, 5):
            start = b"\x80" + bytes([protocol]) + b"\x95"
            place = whole.find(start)
            while place >= 0:
                if is_pickle(whole[place:], least=2):
                    found.append(place)
                place = whole.find(start, place + 1)
        found += [
            whole.find(text) for text in (b"gASV", b"gAWV") if text in whole and is_text(whole)
        ]
    return found


def is_text(content):
    try:
        content.decode()
    except UnicodeDecodeError:
        return False
    return True


def is_pickle(content, least):
    """Whether the bytes are the instructions of a pickle, up to its end.

    Taking them apart keeps account of the stack: by their letters alone, ``2011.5`` would be some.
    """
    try:
        pickletools.dis(io.BytesIO(content), io.StringIO())
        return sum(1 for _ in pickletools.genops(io.BytesIO(content))) >= least
    except Exception:
        return False


def test_the_scanners_find_what_they_look_for(tmp_path):
    file, secret = tmp_path / "file", SECRETS["NIGHTFOLD_SIGNING_PASSPHRASE"]
    for disguise in disguises(secret):
        file.write_bytes(b"before " + disguise + b" after")
        assert secrets_in(file, [secret]) == [secret]
    for prefix in (b"", b"a", b"ab", b"abc"):
        file.write_bytes(base64.b64encode(prefix + secret.encode() + b"behind it"))
        assert secrets_in(file, [secret]) == [secret]
    for protocol in range(6):
        file.write_bytes(pickle.dumps({"a": [1, 2]}, protocol))
        assert pickles_in(file), protocol
    file.write_bytes(b"SQLite" + pickle.dumps([{"a": 1}]) + b"\0\0")
    assert pickles_in(file)
    file.write_text(json.dumps({"result": base64.b64encode(pickle.dumps([1, 2, 3])).decode()}))
    assert pickles_in(file)
    file.write_text("2011.5")
    assert not pickles_in(file)


def test_no_secret_of_the_environment_is_left_behind(left):
    secrets = [*SECRETS.values(), *PARTS_OF_SECRETS]
    found = {str(file): names for file in left["files"] if (names := secrets_in(file, secrets))}
    assert found == {}


def test_nothing_that_is_left_behind_is_a_pickle(left):
    assert {str(file) for file in left["files"] if pickles_in(file)} == set()
    for file in left["files"]:
        if file.suffix in (".npy", ".npz"):
            loaded = np.load(file, allow_pickle=False)  # refuses objects
            if file.suffix == ".npz":
                for name in loaded:
                    loaded[name]


def test_prefect_keeps_fold_results_as_json_and_nothing_else(left):
    results = [f for f in left["files"] if f.parent.name == "storage"]
    assert len(results) == 2
    for file in results:
        assert json.loads(file.read_text())["metadata"]["serializer"]["type"] == "json"


def test_a_night_signs_its_model_and_verifying_needs_no_tensorflow(left, bench, keys):
    command = ("models", "verify", "night-1", "--artifacts", left["artifacts"])
    said = nightfold(bench, *command, **keys)
    assert (said.returncode, said.stderr) == (0, "")
    assert "is whole: 3 files as in its manifest, signed by the key" in said.stdout
    watched = nightfold(bench, *command, **keys, PYTHONPROFILEIMPORTTIME="1")
    assert watched.returncode == 0
    imported = {line.rpartition("|")[2].strip() for line in watched.stderr.splitlines()}
    assert "cryptography" in imported
    assert not imported & {"tensorflow", "keras", "h5py", "prefect"}
    key = next(left["artifacts"].glob("models/*/manifest.json.sig"))
    signed = key.read_bytes()
    key.write_bytes(bytes([signed[0] ^ 1]) + signed[1:])
    refused = nightfold(bench, *command, **keys)
    key.write_bytes(signed)
    assert (refused.returncode, refused.stdout) == (1, "")
    assert "is not the signature of this bundle" in refused.stderr


@pytest.mark.parametrize("password", ["", "night:wrong"])
def test_whoever_lacks_the_password_is_told_so_in_one_sentence(bench, tmp_path, password):
    said = nightfold(
        bench,
        *("retrain", "--dataset", "digits", "--artifacts", tmp_path / "artifacts"),
        PREFECT_API_AUTH_STRING=password,
    )
    assert (said.returncode, said.stdout) == (2, "")
    assert "answers 401 Unauthorized" in said.stderr
    assert "Traceback" not in said.stderr
    assert "night:wrong" not in said.stderr
    assert not (tmp_path / "artifacts").exists()


def test_the_api_lets_nobody_in_without_password_and_changes_nothing_without_a_csrf_token(bench):
    url = bench.env["PREFECT_API_URL"]
    known = tuple(USER_AND_PASSWORD.split(":"))
    asked = {"flow_runs": {"id": {"any_": []}}}
    assert httpx.get(f"{url}/admin/settings").status_code == 401
    assert httpx.get(f"{url}/admin/version", auth=known).status_code == 200
    forged = httpx.post(f"{url}/flow_runs/filter", json=asked, auth=known)
    assert (forged.status_code, "csrf" in forged.text.lower()) == (403, True)


def test_the_server_listens_on_this_machine_alone_unless_told_otherwise(bench):
    """It was started without --host."""
    port = httpx.URL(bench.env["PREFECT_API_URL"]).port
    assert listening_on(port) == {"127.0.0.1"}


def listening_on(port):
    return {
        one.laddr.ip
        for one in psutil.net_connections("tcp")
        if one.status == psutil.CONN_LISTEN and one.laddr.port == port
    }


def test_a_source_with_a_password_is_refused_before_anything_is_kept(bench, tmp_path):
    source = "parquet:s3://key:Planted-Password@bucket/digits"
    for command in ("retrain", "evaluate"):
        said = nightfold(bench, command, "--dataset", source, "--artifacts", tmp_path / "a")
        assert (said.returncode, said.stdout) == (2, "")
        assert "is a remote address" in said.stderr
        assert "Planted-Password" not in said.stderr
    assert not (tmp_path / "a").exists()
    for file in Path(bench.env["PREFECT_HOME"]).rglob("*"):
        if file.is_file():
            assert b"Planted-Password" not in file.read_bytes()


def test_the_environment_of_this_test_is_clean():
    """Secrets are planted for the night alone."""
    assert not SECRETS.keys() & os.environ.keys()
