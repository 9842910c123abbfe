"""What is Temporal's own: the note that says whose pause it is, gRPC's statuses, TLS, keys in files, and an SDK kept quiet.

The promises of every orchestrator are in test_orchestrators_conform.py.
"""

from __future__ import annotations

import contextlib
import datetime
import ipaddress
import re
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from pydantic import ValidationError
from ruamel.yaml import YAML
from temporalio.api.common.v1 import Payload
from temporalio.api.schedule.v1 import ScheduleState

from service.errors import DeliveryFailed
from service.orchestrators.base import Answer
from service.orchestrators.temporal import NOTE_BYTES_MAX, TemporalOrchestrator, is_ours, note_after, our_note
from service.orchestrators.temporal_client import CALL_SECONDS, CONNECT_SECONDS, TemporalConfig
from tests.fakes.temporal import KEY, NAMESPACE, NOTE, READER, REF, FakeTemporal, serve, text_payload
from tests.plug_ins.orchestrator_cases.temporal import section
from workers.attempt import EFFECT_SECONDS_MAX

ASK: dict[str, Any] = {"ref": REF, "workflow_id": "w1", "reason": "account ca_1 is gone"}
TIMEOUT_SECONDS = 5.0  # of a fake on loopback, however busy the machine


@pytest.fixture
async def fake() -> FakeTemporal:
    return FakeTemporal()


@pytest.fixture
async def address(fake: FakeTemporal) -> AsyncIterator[str]:
    async with serve(fake) as address:
        yield address


@pytest.fixture
async def target(address: str) -> TemporalOrchestrator:
    return made(address)


def made(address: str, *, timeout_seconds: float = TIMEOUT_SECONDS, **more: Any) -> TemporalOrchestrator:
    config = {name: value for name, value in (section(address) | more).items() if value is not None}
    return TemporalOrchestrator(TemporalConfig.model_validate(config), timeout_seconds=timeout_seconds)


async def paused(target: TemporalOrchestrator, key: str = "key-pause") -> Answer:
    found = (await target.state(ref=REF)).as_found
    return await target.pause(**ASK, idempotency_key=key, found=found)


async def resumed(target: TemporalOrchestrator, before: Answer) -> Answer:
    return await target.resume(**ASK, idempotency_key="key-resume", prior_state=before.prior_state)


def looks(fake: FakeTemporal) -> tuple[bool, str]:
    return fake.schedules[REF].paused, fake.schedules[REF].notes


# Whose pause it is


async def test_the_note_says_who_paused_it_and_why_and_is_put_back(
    fake: FakeTemporal, target: TemporalOrchestrator
) -> None:
    before = await paused(target)
    assert looks(fake) == (True, 'Paused by Authwatch for "w1": account ca_1 is gone')
    assert (before.prior_state, before.was_paused) == ({"paused": False, "notes": NOTE}, False)
    assert (await resumed(target, before)).status == "resumed"
    assert looks(fake) == (False, NOTE)


async def test_where_there_was_no_note_the_resume_says_who_it_was(
    fake: FakeTemporal, target: TemporalOrchestrator
) -> None:
    """An empty note is no change to Temporal: by it nothing would be resumed."""
    fake.schedules[REF].notes = ""
    assert (await resumed(target, await paused(target))).status == "resumed"
    assert looks(fake) == (False, "Resumed by Authwatch: account ca_1 is gone")


async def test_paused_again_by_a_person_while_we_hold_it_it_is_theirs(
    fake: FakeTemporal, target: TemporalOrchestrator
) -> None:
    before = await paused(target)
    fake.by_hand(REF, paused=True, notes="not tonight")
    assert (await resumed(target, before)).status == "left"
    assert looks(fake) == (True, "not tonight")


async def test_started_by_a_person_while_we_hold_it_it_stays_started(
    fake: FakeTemporal, target: TemporalOrchestrator
) -> None:
    before = await paused(target)
    fake.by_hand(REF, paused=False)
    assert (await resumed(target, before)).status == "left"
    assert looks(fake) == (False, "Unpaused via CLI")
    assert len(fake.patches) == 1


async def test_paused_by_a_person_between_our_look_and_our_pause_it_is_theirs(
    fake: FakeTemporal, target: TemporalOrchestrator
) -> None:
    """The look is recorded, and the pause may come an hour later, when the server is back."""
    found = (await target.state(ref=REF)).as_found
    fake.by_hand(REF, paused=True)
    answer = await target.pause(**ASK, idempotency_key="k", found=found)
    assert answer.was_paused is True
    assert fake.patches == []
    assert (await resumed(target, answer)).status == "left"
    assert looks(fake) == (True, "Paused via CLI")


async def test_a_resume_whose_answer_was_lost_is_known_as_ours(
    fake: FakeTemporal, target: TemporalOrchestrator
) -> None:
    before = await paused(target)
    fake.break_next = True
    with pytest.raises(DeliveryFailed) as caught:
        await resumed(target, before)
    assert (caught.value.permanent, caught.value.ambiguous) == (False, True)
    assert looks(fake) == (False, NOTE)
    assert (await resumed(target, before)).status == "resumed"
    assert len(fake.patches) == 2


async def test_our_key_goes_with_it_so_that_a_late_repeat_pauses_nothing_anew(
    fake: FakeTemporal, target: TemporalOrchestrator
) -> None:
    before = await paused(target)
    fake.by_hand(REF, paused=False)
    await target.pause(**ASK, idempotency_key="key-pause", found=before.prior_state)
    assert [patch.request_id for patch in fake.patches] == ["key-pause"]
    assert looks(fake) == (False, "Unpaused via CLI")


@pytest.mark.parametrize("other", ["w2", "w", "w1: x", 'w1": x', "W1", ""])
def test_a_note_is_ours_for_its_own_workflow_alone(other: str) -> None:
    assert is_ours(our_note("w1", "why"), "w1")
    assert not is_ours(our_note(other, "why"), "w1")
    assert not is_ours(our_note("w1", "why"), other)


@pytest.mark.parametrize("workflow_id", ["w", "ü" * 2_000, "\x00\r\n"])
def test_a_note_fits_whatever_is_in_it_and_stays_ours(workflow_id: str) -> None:
    note = our_note(workflow_id, "\U0001f534 \x00" * 1_000)
    assert len(note.encode()) <= NOTE_BYTES_MAX
    assert note.isprintable()
    assert is_ours(note, workflow_id)


async def test_a_token_in_the_reason_is_not_in_the_note(fake: FakeTemporal, target: TemporalOrchestrator) -> None:
    secret = "xoxb-123456789012-abcdefghijkl"
    await target.pause(**ASK | {"reason": f"refused: {secret}"}, idempotency_key="k")
    assert secret not in looks(fake)[1]


# Calls


async def test_no_call_is_repeated_by_the_sdk(fake: FakeTemporal, target: TemporalOrchestrator) -> None:
    await target.state(ref=REF)
    fake.calls.clear()
    fake.answer_next("UNAVAILABLE", "try later", always=True)
    for _ in range(2):  # over the connection that stands, and over one that has to be made
        with pytest.raises(DeliveryFailed):
            await target.state(ref=REF)
    assert fake.calls == ["DescribeSchedule", "GetSystemInfo"]


@pytest.mark.parametrize(
    ("status", "code", "permanent", "ambiguous"),
    [
        ("UNAVAILABLE", "grpc_unavailable", False, True),
        ("INTERNAL", "grpc_internal", False, True),
        ("UNKNOWN", "grpc_unknown", False, True),
        ("ABORTED", "grpc_aborted", False, True),
        ("DEADLINE_EXCEEDED", "timeout", False, True),
        ("CANCELLED", "timeout", False, True),
        ("RESOURCE_EXHAUSTED", "grpc_resource_exhausted", False, False),
        ("PERMISSION_DENIED", "http_403", True, False),
        ("UNAUTHENTICATED", "http_401", True, False),
        ("INVALID_ARGUMENT", "grpc_invalid_argument", True, False),
        ("FAILED_PRECONDITION", "grpc_failed_precondition", True, False),
        ("UNIMPLEMENTED", "grpc_unimplemented", True, False),
        ("NOT_FOUND", "workflow_gone", True, False),
    ],
)
async def test_a_change_that_failed_is_judged_by_what_may_have_happened(
    fake: FakeTemporal, target: TemporalOrchestrator, status: str, code: str, permanent: bool, ambiguous: bool
) -> None:
    await target.state(ref=REF)  # the connection stands
    patch = target._patch(REF, "k", pause="x")
    fake.answer_next(status, f"because of {KEY}")
    with pytest.raises(DeliveryFailed) as caught:
        await patch
    assert (caught.value.code, caught.value.permanent, caught.value.ambiguous) == (code, permanent, ambiguous)
    assert KEY not in str(caught.value)


async def test_a_schedule_that_has_been_closed_is_gone(fake: FakeTemporal, target: TemporalOrchestrator) -> None:
    fake.answer_next("FAILED_PRECONDITION", "schedule closed")
    with pytest.raises(DeliveryFailed) as caught:
        await target.state(ref=REF)
    assert caught.value.code == "workflow_gone"


async def test_a_namespace_that_is_not_there_is_a_mistake_of_the_config(address: str) -> None:
    elsewhere = made(address, namespace="ops.gone")
    for call in (elsewhere.state(ref=REF), elsewhere.list_workflows(limit=1)):
        with pytest.raises(DeliveryFailed, match=r"no namespace ops\.gone; correct `namespace`") as caught:
            await call
        assert (caught.value.code, caught.value.permanent) == ("namespace_unknown", True)


@pytest.mark.parametrize("ref", ["", "r" * 1_001, "a\nb"])
async def test_what_can_be_no_schedule_id_is_not_asked_for(
    fake: FakeTemporal, target: TemporalOrchestrator, ref: str
) -> None:
    with pytest.raises(DeliveryFailed) as caught:
        await target.state(ref=ref)
    assert (caught.value.code, caught.value.permanent) == ("ref_invalid", True)
    assert fake.calls == []


async def test_a_connection_that_was_closed_meanwhile_is_made_anew(
    fake: FakeTemporal, target: TemporalOrchestrator
) -> None:
    await target.state(ref=REF)
    assert fake._relay is not None
    fake._relay.break_off()
    with contextlib.suppress(DeliveryFailed):  # it may find out that the connection is gone by this call
        await target.state(ref=REF)
    assert (await target.state(ref=REF)).paused is False


def test_an_attempt_ends_before_the_worker_ends_it() -> None:
    assert CONNECT_SECONDS + 3 * CALL_SECONDS < EFFECT_SECONDS_MAX


# Credentials


@pytest.mark.parametrize("public_info", [True, False])
async def test_a_key_that_expired_is_told_and_its_new_file_is_taken_up(
    fake: FakeTemporal, address: str, tmp_path: Path, public_info: bool
) -> None:
    """Temporal Cloud asks for the key already when the SDK connects; a server of one's own does not."""
    fake.public_info = public_info
    file = tmp_path / "key"
    file.write_text("an-old-key-which-has-expired\n")
    target = made(address, api_key=None, api_key_file=str(file))
    with pytest.raises(DeliveryFailed, match="renew api_key") as caught:
        await target.check()
    assert (caught.value.code, caught.value.permanent) == ("http_401", True)
    assert "an-old-key" not in str(caught.value)
    file.write_text(f"{KEY}\n")
    assert NAMESPACE in await target.check()


async def test_a_key_that_may_only_read_passes_the_check_and_is_refused_at_the_pause(
    fake: FakeTemporal, address: str
) -> None:
    target = made(address, api_key=READER)
    assert "shows with the first pause" in await target.check()
    with pytest.raises(DeliveryFailed, match="write access") as caught:
        await paused(target)
    assert (caught.value.code, caught.value.permanent) == ("http_403", True)
    assert looks(fake) == (False, NOTE)


@pytest.mark.parametrize(
    ("content", "said"), [(None, "FileNotFoundError"), ("", "too short"), ("k e y k e y", "spaces")]
)
async def test_a_key_file_that_cannot_be_right_waits_for_its_mend(
    address: str, tmp_path: Path, content: str | None, said: str
) -> None:
    file = tmp_path / "key"
    if content is not None:
        file.write_text(content)
    with pytest.raises(DeliveryFailed, match=f"api_key_file.*{said}") as caught:
        await made(address, api_key=None, api_key_file=str(file)).check()
    assert (caught.value.code, caught.value.permanent) == ("http_401", True)


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"address": "https://temporal.example.com:7233"}, "host:port"),
        ({"address": "temporal.example.com"}, "host:port"),
        ({"address": "temporal.example.com:0"}, "host:port"),
        ({"address": "temporal.example.com:7233"}, "readable on the way"),
        ({"api_key": "k3y"}, "too short"),
        ({"api_key": "line\nline-line"}, "characters that no key holds"),
        ({"api_key_file": "/run/secrets/key"}, "keep one"),
        ({"tls": None, "tls_cert_file": "/c.pem"}, "belong together"),
        ({"tls_ca_file": "/ca.pem"}, "remove one"),
        ({"namespace": ""}, "namespace"),
        ({"tls": "no"}, "tls"),
    ],
)
def test_a_section_that_cannot_be_right_stops_the_start_without_showing_the_key(
    wrong: dict[str, Any], said: str
) -> None:
    with pytest.raises(ValidationError, match=said) as caught:
        TemporalConfig.model_validate(section("127.0.0.1:7233") | wrong)
    assert KEY not in str(caught.value)
    assert str(wrong.get("api_key", KEY)) not in str(caught.value)


@pytest.mark.parametrize(
    ("section", "with_tls"),
    [
        ({"address": "127.0.0.1:7233"}, False),
        ({"address": "ops.a1b2c.tmprl.cloud:7233", "api_key": KEY}, True),
        ({"address": "[::1]:7233", "tls": True}, True),
        ({"address": "t:7233", "tls_cert_file": "/c.pem", "tls_key_file": "/k.pem"}, True),
        ({"address": "t:7233", "tls_ca_file": "/ca.pem"}, True),
    ],
)
def test_tls_is_on_wherever_there_is_something_to_protect(section: dict[str, Any], with_tls: bool) -> None:
    assert TemporalConfig.model_validate(section).with_tls is with_tls


# TLS


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An authority, and a server and a client that it vouches for."""
    folder = tmp_path_factory.mktemp("certificates")
    authority_key = ec.generate_private_key(ec.SECP256R1())
    authority = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "the tests")])
    for name in ("ca", "server", "client", "stranger"):
        own = name in ("ca", "stranger")
        key = authority_key if name == "ca" else ec.generate_private_key(ec.SECP256R1())
        subject = authority if own else x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, name)])
        now = datetime.datetime.now(datetime.UTC)
        certificate = (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(authority)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - datetime.timedelta(hours=1))
            .not_valid_after(now + datetime.timedelta(hours=1))
            .add_extension(x509.BasicConstraints(ca=own, path_length=None), critical=True)
            .add_extension(
                x509.SubjectAlternativeName(
                    [x509.DNSName("temporal.test"), x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]
                ),
                critical=False,
            )
            .sign(key if own else authority_key, hashes.SHA256())
        )
        (folder / f"{name}.pem").write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
        (folder / f"{name}.key").write_bytes(
            key.private_bytes(
                serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
            )
        )
    return folder


@pytest.fixture
async def secure(fake: FakeTemporal, certificates: Path) -> AsyncIterator[str]:
    """A server that asks for a client's certificate."""
    credentials = grpc.ssl_server_credentials(
        [((certificates / "server.key").read_bytes(), (certificates / "server.pem").read_bytes())],
        root_certificates=(certificates / "ca.pem").read_bytes(),
        require_client_auth=True,
    )
    async with serve(fake, credentials) as address:
        yield address


def over_tls(
    address: str, folder: Path, *, ca: str = "ca", client: str | None = "client", **more: Any
) -> TemporalOrchestrator:
    files: dict[str, Any] = {"tls_ca_file": str(folder / f"{ca}.pem")}
    if client is not None:
        files |= {"tls_cert_file": str(folder / f"{client}.pem"), "tls_key_file": str(folder / f"{client}.key")}
    return made(address, tls=None, **files, **more)


@pytest.mark.parametrize("more", [{}, {"tls_server_name": "temporal.test"}])
async def test_both_sides_show_a_certificate(secure: str, certificates: Path, more: dict[str, Any]) -> None:
    assert await over_tls(secure, certificates, **more).check()


@pytest.mark.parametrize(
    "wrong",
    [{"ca": "stranger"}, {"client": None}, {"client": "stranger"}, {"tls_server_name": "elsewhere.test"}],
)
async def test_without_the_right_certificate_there_is_no_connection(
    fake: FakeTemporal, secure: str, certificates: Path, wrong: dict[str, Any]
) -> None:
    with pytest.raises(DeliveryFailed, match="certificate") as caught:
        await over_tls(secure, certificates, **wrong).check()
    assert (caught.value.code, caught.value.permanent) == ("connect_failed", False)
    assert fake.calls == []


async def test_a_server_without_tls_gets_no_key(fake: FakeTemporal, address: str) -> None:
    with pytest.raises(DeliveryFailed) as caught:
        await made(address, tls=True).check()
    assert caught.value.code == "connect_failed"
    assert fake.calls == []


# The list, and the SDK


async def test_the_list_has_what_a_schedule_is_tagged_with(fake: FakeTemporal, target: TemporalOrchestrator) -> None:
    fake.tags[REF] = (
        {
            "Team": text_payload("billing"),
            "Labels": text_payload(["a", "b"]),
            "TemporalSchedulePaused": text_payload("x"),
        },
        {
            "owner": text_payload("clark"),
            "size": text_payload(7),
            "hidden": text_payload("x" * 2_000),
            "note": text_payload("xoxb-123456789012-abcdefghijkl"),
        },
    )
    fake.tags[REF][1]["sealed"] = Payload(metadata={"encoding": b"binary/encrypted"}, data=b'"secret"')
    (listed,) = await target.list_workflows(limit=10)
    assert (listed.ref, listed.name, listed.paused) == (REF, REF, False)
    assert listed.tags[:5] == ("ImportTickets", "Labels=a", "Labels=b", "Team=billing", "note=***")
    assert listed.tags[5:] == ("owner=clark",)


async def test_the_list_asks_for_no_more_than_it_gives(fake: FakeTemporal, target: TemporalOrchestrator) -> None:
    fake.by_hand(REF, paused=True)
    for number in range(249):
        fake.schedules[f"import-{number}"] = ScheduleState()
    assert len({listed.ref for listed in await target.list_workflows(limit=1_000)}) == 250
    fake.calls.clear()
    assert [listed.paused for listed in await target.list_workflows(limit=2)] == [True, False]
    assert fake.calls == ["ListSchedules"]


def test_the_sdk_is_loaded_by_a_section_of_its_kind_alone() -> None:
    code = (
        "import sys\n"
        "from service.orchestrators import ORCHESTRATORS\n"
        "assert 'temporalio' not in sys.modules\n"
        "kind = ORCHESTRATORS['temporal']\n"
        "kind.open(kind.Config(name='ops', address='127.0.0.1:9'), None)\n"
        "assert 'temporalio.service' in sys.modules\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=60)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


async def test_the_sdk_writes_nothing_of_its_own(
    fake: FakeTemporal, target: TemporalOrchestrator, capfd: pytest.CaptureFixture[str]
) -> None:
    await target.state(ref=REF)
    for status in ("INTERNAL", "UNAVAILABLE", "UNAUTHENTICATED"):
        fake.answer_next(status, KEY)
        with pytest.raises(DeliveryFailed):
            await target.state(ref=REF)
    with pytest.raises(DeliveryFailed):
        await made("127.0.0.1:9").check()
    assert capfd.readouterr() == ("", "")


# docs/orchestrators.md


def test_the_section_and_the_notes_that_the_docs_show_are_ours() -> None:
    text = (Path(__file__).resolve().parents[2] / "docs" / "orchestrators.md").read_text(encoding="utf-8")
    text = text.partition("## Temporal")[2].partition("\n## ")[0]
    (shown,) = re.findall(r"^```yaml\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    config = YAML(typ="safe", pure=True).load(shown.replace("${TEMPORAL_API_KEY}", KEY))["orchestrators"]["temporal"]
    assert TemporalConfig.model_validate(config).with_tls
    assert set(re.findall(r"`((?:api|tls)[a-z_]*)`", text)) == {
        name for name in TemporalConfig.model_fields if name.startswith(("api", "tls"))
    }
    assert f"`{our_note('WORKFLOW', 'why')}`" in text
    assert f"`{note_after({}, 'why')}`" in text
