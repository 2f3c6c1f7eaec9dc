"""`bursar calibrate`: options, figures, labels, JSON, and the page that it writes."""

import base64
import json
import re
import struct
import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree as ET

import pytest
from click.testing import CliRunner, Result

import bursar
from bursar.cli import cli
from bursar.testing import Sidecar

PNG = b"\x89PNG\r\n\x1a\n"


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two hundred runs of ten agents that spend 1 to 200 tokens, and one that is open."""
    path = tmp_path_factory.mktemp("store") / "ledger.db"
    with bursar.open(path) as client, path.with_suffix(".csv").open("w") as labels:
        labels.write("reservation,success\n")
        for spent in range(1, 201):
            hold = client.reserve(f"acme/agent-{spent % 10}", tokens=256)
            hold.commit(tokens=spent)
            labels.write(f"{hold.id},{'yes' if spent % 4 else 'no'}\n")
        labels.write("elsewhere,true\n")
        client.reserve("acme/agent-1", tokens=64, ttl_s=86_400)
    return path


def run(store: Path, *options: str) -> Result:
    return CliRunner().invoke(cli, ["calibrate", "acme", "--store", str(store), *options])


def test_it_says_what_limits_would_have_done_and_recommends_one(store: Path) -> None:
    result = run(store)
    assert result.exit_code == 0, result.output
    lines = [line.split() for line in result.stdout.splitlines()]
    assert result.stdout.splitlines()[:2] == [
        "acme: a run is one reservation",
        "left out: 1 reservation not yet ended",
    ]
    assert "tokens: 200 runs spent 20,100 tokens" in result.stdout
    assert ["95%", "190", "256", "245"] in lines
    assert ["190", "5%", "55", "24.5%,", "15%", "0", "55", "100%", "95%"] in lines
    *words, holds = result.stdout.splitlines()[-4:]
    assert words == [
        "recommended limit of a run: 199 tokens",
        "it cuts 0.995% of new runs of this kind or fewer, give or take 0.698%",
        "degrade at 91% of it: 10% of runs or fewer",
    ]
    assert holds.startswith("runs that hold so much need 256 tokens to be refused no more often")


def test_json_holds_integers_and_shares(store: Path) -> None:
    told = json.loads(
        run(store, "--json", "--unit", "tokens", "--limit", "150", "--degrade-at", "50").stdout
    )
    assert (told["account"], told["by"], told["open_calls"]) == ("acme", "reservation", 1)
    [tokens] = told["units"]
    assert (tokens["unit"], tokens["runs"], tokens["spent"]) == ("tokens", 200, 20_100)
    [outcome] = tokens["outcomes"]
    assert outcome["limit"] == 150
    assert (outcome["cut"], outcome["cut_share"], outcome["saved"]) == (50, 0.25, 1275)
    assert (outcome["degraded"], outcome["degraded_shares"]) == ([126], [0.63])
    assert (outcome["overshoot"], outcome["late_overshoot"]) == (0, 1275)
    assert (outcome["refused_falsely"], outcome["quality"]) == (150, None)
    assert tokens["recommendation"]["limit"] == 199
    assert tokens["recommendation"]["outcome"]["cut"] == 1


def test_the_rate_that_is_asked_for_is_the_rate_that_is_recommended(store: Path) -> None:
    told = json.loads(run(store, "--json", "--cut", "5", "--degrade", "25%").stdout)
    found = told["units"][0]["recommendation"]
    assert (found["limit"], found["degrade_permille"]) == (191, 791)
    assert found["expected_cut"] == pytest.approx(10 / 201, abs=1e-6)


def test_labels_say_what_truncation_costs_in_quality(store: Path) -> None:
    labels = str(store.with_suffix(".csv"))
    result = run(store, "--labels", labels, "--quantile", "90")
    assert result.exit_code == 0, result.output
    assert "left out: 1 label of no run" in result.stdout
    lines = [line.split() for line in result.stdout.splitlines()]
    assert ["180", "75%", ">", "67.5%", "15", "5", "60"] in lines
    assert "success goes from 75% to 75%, if every run that is cut fails" in result.stdout
    told = json.loads(run(store, "--labels", labels, "--quantile", "90", "--json").stdout)
    quality = told["units"][0]["outcomes"][0]["quality"]
    assert (quality["success_before"], quality["success_after"]) == (0.75, 0.675)
    assert (quality["cut_succeeded"], quality["saved_on_failed"]) == (15, 60)


def test_labels_of_accounts_name_accounts(store: Path, tmp_path: Path) -> None:
    labels = tmp_path / "labels.csv"
    labels.write_text("success,note,account\ntrue,x,acme/agent-1\n0,,acme/agent-2\n")
    told = json.loads(run(store, "--by", "account", "--labels", str(labels), "--json").stdout)
    assert (told["units"][0]["runs"], told["units"][0]["labelled"]) == (10, 2)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", ":1: its first line must name reservation and success"),
        ("reservation,good\na,1\n", ":1: its first line must name reservation and success"),
        ("reservation,success\na,1\nb,perhaps\n", ":3: success is 'perhaps', not true or false"),
        ("reservation,success\na\n", ":2: success is '', not true or false"),
        ("reservation,success\na,1\na,0\n", ":3: 'a' is there twice"),
        ("reservation,success\n,1\n", ":2: it names none"),
        ("reservation,success\n\xff,1\n", "not a CSV file in UTF-8"),
    ],
)
def test_wrong_labels_are_named_with_their_line(
    store: Path, tmp_path: Path, text: str, says: str
) -> None:
    labels = tmp_path / "l.csv"
    labels.write_bytes(text.encode("latin-1"))
    result = run(store, "--labels", str(labels))
    assert result.exit_code == 2
    assert says in result.stderr


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--limit", "5"], "--limit needs --unit"),
        (["--unit", "tokens", "--limit", "5 EUR"], "'5 EUR' is no amount"),
        (["--unit", "vram_bytes"], "'vram_bytes' is not one of"),
        (["--period", "day"], "--period needs --by account"),
        (["--by", "account", "--period", "rolling:60s"], "--period cannot be rolling"),
        (["--cut", "0"], "'0' is not a share such as 1% or 99.9%"),
        (["--cut", "100%"], "'100%' is not a share"),
        (["--cut", "nan"], "'nan' is not a share"),
        (["--quantile", "1e999999"], "'1e999999' is not a share"),
        (["--quantile", "101"], "'101' is not a share"),
        (["--degrade-at", "1", "--degrade-at", "2"] * 3, "at most 4 thresholds"),
    ],
)
def test_wrong_options_are_refused_before_anything_is_read(options: list[str], says: str) -> None:
    result = CliRunner().invoke(cli, ["calibrate", "acme", "--target", "unix:/nowhere", *options])
    assert result.exit_code == 2
    assert says in " ".join(result.stderr.split())


def test_no_runs_are_told_and_reported(store: Path, tmp_path: Path) -> None:
    report = tmp_path / "report.html"
    options = ["--store", str(store), "--report", str(report)]
    result = CliRunner().invoke(cli, ["calibrate", "nobody", *options])
    assert result.exit_code == 0, result.output
    assert "no runs: nothing that has ended held or spent anything" in result.stdout
    assert "no runs" in report.read_text(encoding="utf-8")


def test_a_range_without_runs_has_none(store: Path) -> None:
    assert "no runs" in run(store, "--since", "2999-01-01").stdout
    assert "no runs" in run(store, "--until", "2000-01-01").stdout
    assert "200 runs" in run(store, "--since", "2000-01-01", "--until", "2999-01-01").stdout


def test_it_reads_a_sidecar(tmp_path: Path) -> None:
    with Sidecar('accounts = [{ path = "**" }]') as sidecar, sidecar.client() as client:
        client.reserve("acme/a", tokens=10).commit(tokens=4)
        client.reserve("acme/a", tokens=10)
        command = [sys.executable, "-m", "bursar", "calibrate", "acme", "--target", sidecar.target]
        done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=30)
    assert "tokens: 1 run spent 4 tokens" in done.stdout
    assert "recommended limit of a run: 4 tokens" in done.stdout


def parsed(page: str) -> tuple[ET.Element, list[bytes]]:
    """The page as XML, and its pictures."""
    declared = page.removeprefix("<!DOCTYPE html>\n")
    assert declared != page
    pictures = re.findall(r'"data:image/png;base64,([^"]+)"', page)
    return ET.fromstring(declared), [base64.b64decode(one) for one in pictures]  # noqa: S314 -- ours


def test_the_page_is_well_formed_and_needs_nothing_else(store: Path, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    report = tmp_path / "report.html"
    labels = str(store.with_suffix(".csv"))
    result = run(store, "--report", str(report), "--labels", labels)
    assert result.exit_code == 0, result.output
    assert result.stderr == f"wrote {report}\n"
    text = report.read_text(encoding="utf-8")
    root, pictures = parsed(text)
    assert "http" not in text
    assert "<script" not in text
    assert "prefers-color-scheme: dark" in text
    assert len(root.findall(".//table")) == 3
    assert [one.text for one in root.findall(".//h2")] == ["tokens", "How it is reckoned"]
    assert "recommended limit of a run: 199 tokens" in text
    light, dark = pictures[1], pictures[0]
    assert light != dark
    for picture in pictures:
        assert picture.startswith(PNG)
        assert struct.unpack(">II", picture[16:24]) == (1210, 836)


def test_a_page_of_odd_runs_is_drawn_and_what_names_hold_is_escaped(tmp_path: Path) -> None:
    """One run; only runs that spent nothing; amounts near the largest."""
    pytest.importorskip("matplotlib")
    path = tmp_path / "ledger.db"
    with bursar.open(path) as client:
        client.reserve("acme/a", amounts={"tokens": 9, "calls": 1}).commit(actual={"tokens": 9})
        client.reserve("acme/a", amounts={"usd_nanos": 2**61}).commit(actual={"usd_nanos": 2**61})
    report = tmp_path / "report.html"
    assert run(path, "--report", str(report)).exit_code == 0
    root, pictures = parsed(report.read_text(encoding="utf-8"))
    assert [one.text for one in root.findall(".//h2")][:3] == ["calls", "tokens", "usd_nanos"]
    assert len(pictures) == 6
    options = ["calibrate", "<b>&", "--store", str(path), "--report", str(report)]
    refused = CliRunner().invoke(cli, options)
    assert refused.exit_code == 2, "no account has such a name"


def test_a_report_needs_the_extra(store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    result = run(store, "--report", "report.html")
    assert result.exit_code == 2
    assert "pip install 'bursar-sidecar[report]'" in result.stderr
