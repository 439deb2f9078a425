"""With a public key configured, only what its owner has signed is used; without one nothing asks.

The bundles here hold no real model: a signature is checked before anything of them is opened.
"""

import shutil
import subprocess
from pathlib import Path

import pytest

from nightfold import signature
from nightfold.bundle import Bundle
from nightfold.errors import BundleRefused, UsageError
from nightfold.manifest import verify
from nightfold.registry import Registry
from nightfold.signature import SIGNATURE
from nightfold.store import TEMPORARY, Store


@pytest.fixture
def registry(tmp_path: Path, add_bundle) -> Registry:
    registry = Registry(Store(tmp_path / "artifacts"))
    for version in "ab":
        add_bundle(registry.folder, version)
    return registry


@pytest.mark.parametrize("use", ["verify", "load", "promote"])
def test_an_unsigned_bundle_is_refused_wherever_it_is_used(registry, new_key, use):
    new_key("night", public=True)
    arguments = ("b", "better") if use == "promote" else ("b",)
    with pytest.raises(BundleRefused, match=r"models/b is not signed"):
        getattr(registry, use)(*arguments)
    assert registry.champion() is None


def test_a_rollback_asks_for_the_signature_as_well(registry, new_key):
    registry.promote("a", "first")
    registry.promote("b", "better")
    new_key("night", public=True)
    with pytest.raises(BundleRefused, match=r"models/a is not signed"):
        registry.rollback()
    assert registry.champion().version == "b"


def test_a_bundle_signed_by_hand_is_accepted(registry, new_key):
    new_key("night", public=True)
    registry.sign("a")
    assert registry.verify("a").version == "a"
    assert registry.promote("a", "first").version == "a"


def test_readers_go_on_while_a_bundle_is_signed_and_where_that_was_killed(registry, new_key):
    new_key("night", public=True)
    registry.sign("a")
    (registry.folder / "a" / f"{TEMPORARY}1a2b3c4d-{SIGNATURE}").write_bytes(b"half")
    assert registry.promote("a", "first").version == "a"
    assert registry.sign("a").version == "a"


def test_the_public_key_may_be_named_from_the_home_folder(registry, new_key, monkeypatch):
    key = new_key("night")
    registry.sign("a")
    monkeypatch.setenv("HOME", str(key.parent))
    assert registry.verify("a", Path("~", key.name)).version == "a"


def test_what_another_key_has_signed_is_refused(registry, new_key):
    new_key("stranger")
    registry.sign("a")
    ours = new_key("night")
    with pytest.raises(BundleRefused, match=r"manifest\.json\.sig is not the signature"):
        registry.verify("a", ours)


def test_a_manifest_that_was_written_again_loses_its_signature(registry, new_key):
    ours = new_key("night")
    registry.sign("a")
    manifest = registry.folder / "a" / "manifest.json"
    manifest.write_text(manifest.read_text() + " ")
    with pytest.raises(BundleRefused, match="is not the signature"):
        registry.verify("a", ours)


def test_the_signature_of_another_bundle_does_not_fit(registry, new_key):
    ours = new_key("night")
    registry.sign("a")
    shutil.copy(registry.folder / "a" / "manifest.json.sig", registry.folder / "b")
    with pytest.raises(BundleRefused, match="is not the signature"):
        registry.verify("b", ours)


def test_an_altered_bundle_is_never_signed(registry, new_key):
    new_key("night")
    (registry.folder / "a" / "model.keras").write_text("model.keras of x")
    with pytest.raises(BundleRefused, match="was altered"):
        registry.sign("a")
    assert not (registry.folder / "a" / "manifest.json.sig").exists()


def test_openssl_makes_the_keys_and_checks_the_signature(registry, tmp_path, monkeypatch):
    """Whoever has no Nightfold can check a bundle as well."""

    def openssl(*arguments):
        done = subprocess.run(["openssl", *arguments], cwd=tmp_path, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return done.stdout

    lock = ("-aes256", "-pass", "pass:over the moon")
    openssl("genpkey", "-algorithm", "ed25519", *lock, "-out", "k.pem")
    openssl("pkey", "-in", "k.pem", "-passin", lock[2], "-pubout", "-out", "k.pub.pem")
    monkeypatch.setenv("NIGHTFOLD_SIGNING_KEY", str(tmp_path / "k.pem"))
    monkeypatch.setenv("NIGHTFOLD_SIGNING_PASSPHRASE", "over the moon")
    monkeypatch.setenv("NIGHTFOLD_PUBLIC_KEY", str(tmp_path / "k.pub.pem"))
    signature.check_settings()
    registry.sign("a")
    verify(registry.folder / "a")
    manifest = registry.folder / "a" / "manifest.json"
    told = openssl(
        *("pkeyutl", "-verify", "-pubin", "-inkey", "k.pub.pem", "-rawin"),
        *("-in", str(manifest), "-sigfile", f"{manifest}.sig"),
    )
    assert "Verified Successfully" in told


def test_without_keys_nothing_is_asked_for_and_signing_says_what_is_missing(registry):
    assert registry.verify("a").version == "a"
    with pytest.raises(UsageError, match="set NIGHTFOLD_SIGNING_KEY"):
        registry.sign("a")


def test_a_signed_bundle_is_as_good_as_another_to_whoever_has_no_key(
    registry, new_key, monkeypatch
):
    new_key("night")
    registry.sign("a")
    monkeypatch.delenv("NIGHTFOLD_SIGNING_KEY")
    assert registry.promote("a", "first").version == "a"


@pytest.mark.parametrize("passphrase", [None, "wrong"])
def test_a_key_that_cannot_be_opened_is_one_sentence_without_the_passphrase(
    new_key, monkeypatch, passphrase
):
    new_key("night", passphrase="over the moon")
    if passphrase:
        monkeypatch.setenv("NIGHTFOLD_SIGNING_PASSPHRASE", passphrase)
    with pytest.raises(UsageError, match=r"night\.pem cannot be opened") as refused:
        signature.check_settings()
    assert "wrong" not in str(refused.value)


def test_keys_that_do_not_belong_together_are_found_before_the_night(new_key, monkeypatch):
    monkeypatch.setenv("NIGHTFOLD_PUBLIC_KEY", str(new_key("one")))
    new_key("two")
    with pytest.raises(UsageError, match="not the public half"):
        signature.check_settings()


@pytest.mark.parametrize("content", [None, b"", b"-----BEGIN PUBLIC KEY-----\nAAAA\n"])
def test_a_public_key_that_is_none_is_one_sentence(registry, tmp_path, content):
    file = tmp_path / "key.pub.pem"
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(UsageError, match=r"key\.pub\.pem"):
        registry.verify("a", file)


@pytest.mark.slow
def test_a_night_with_a_key_seals_signed_models(model, small_mnist, facts, tmp_path, new_key):
    from nightfold.bundle import seal

    new_key("night", public=True)
    handle = seal(model, tmp_path / "models", facts, small_mnist.test.images[:4])
    assert (Path(handle.path) / "manifest.json.sig").stat().st_size == 64
    assert Bundle.load(handle.path).manifest == handle.verify()
