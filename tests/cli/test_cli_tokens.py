"""`dsv4 tokens`: ids and pieces without a server."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pytest

from dsv4_backend import cli
from dsv4_backend.text import TextEncoder


def test_tokens_prints_ids_that_the_server_would_use(tokenizer_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["tokens", "--json", "--tokenizer", str(tokenizer_path), "Hello wörld"]) == 0
    shown = json.loads(capsys.readouterr().out)
    assert tuple(shown["token_ids"]) == TextEncoder(tokenizer_path).encode("Hello wörld")
    assert len(shown["pieces"]) == len(shown["token_ids"])


def test_tokens_reads_stdin(
    tokenizer_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO("Hello"))
    cli.main(["tokens", "--json", "--tokenizer", str(tokenizer_path), "-"])
    assert "".join(json.loads(capsys.readouterr().out)["pieces"]).endswith("Hello")


def test_plain_output_ends_with_the_count(tokenizer_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    cli.main(["tokens", "--tokenizer", str(tokenizer_path), "Hello"])
    lines = capsys.readouterr().out.splitlines()
    assert lines[-1] == f"{len(lines) - 1} tokens"


def test_missing_tokenizer_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["tokens", "--tokenizer", str(tmp_path / "none"), "x"]) == cli.EXIT_REFUSED
    assert str(tmp_path / "none") in capsys.readouterr().err


def test_chat_body_is_encoded_as_the_server_would(
    tokenizer_path: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    body = tmp_path / "body.json"
    body.write_text(json.dumps({"messages": [{"role": "user", "content": "Hello"}], "thinking": {"type": "disabled"}}))
    assert cli.main(["tokens", "--json", "--tokenizer", str(tokenizer_path), "--chat", str(body)]) == 0
    assert "".join(json.loads(capsys.readouterr().out)["pieces"]) == (
        "<｜begin▁of▁sentence｜><｜User｜>Hello<｜Assistant｜></think>"
    )


@pytest.mark.parametrize("arguments", [[], ["text", "--chat", "body.json"]])
def test_tokens_takes_a_text_or_a_chat(
    arguments: list[str], tokenizer_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["tokens", "--tokenizer", str(tokenizer_path), *arguments]) == cli.EXIT_REFUSED
    assert "either a text or --chat FILE" in capsys.readouterr().err
