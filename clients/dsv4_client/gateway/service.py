"""What the endpoints share: the connection, the tokenizer, the caches and the counters of one gateway."""

from __future__ import annotations

import json
from dataclasses import dataclass, field

from dsv4_backend.chat import ChatEncoder
from dsv4_backend.errors import Dsv4Error
from dsv4_backend.text import TextEncoder, Vocabulary
from dsv4_client.aio import AsyncClient
from dsv4_client.gateway.errors import ApiError
from dsv4_client.gateway.metrics import GatewayMetrics
from dsv4_client.gateway.reasoning import ReasoningCache
from dsv4_client.gateway.settings import GatewaySettings
from dsv4_client.gateway.store import ResponseStore

_CALL_MARK = b"\xef\xbd\x9cDSML\xef\xbd\x9c"  # ｜DSML｜


@dataclass(slots=True, kw_only=True)
class Service:
    """One gateway's parts; made once, before the first request."""

    settings: GatewaySettings
    client: AsyncClient
    encoder: ChatEncoder
    text: TextEncoder
    vocabulary: Vocabulary
    metrics: GatewayMetrics = field(default_factory=GatewayMetrics)
    reasoning: ReasoningCache = field(default_factory=ReasoningCache)
    store: ResponseStore
    call_mark_id: int | None
    max_model_len: int = 0

    def check_model(self, name: object) -> None:
        """Refuse a model that is not served. Raises: ApiError."""
        names = self.settings.model_names or (self.settings.model_name,)
        if name in (None, "") or "*" in names or name in names:
            return
        shown = name if isinstance(name, str) else repr(name)
        raise ApiError(
            404, f"the model {shown[:80]!r} is not served here. Use {names[0]!r}.", "model_not_found", "model"
        )

    async def model_length(self) -> int:
        """Return how many tokens prompt and answer may have together; the config's limit until the server answers."""
        if not self.max_model_len:
            config = json.loads((self.settings.checkpoint / "config.json").read_text(encoding="utf-8"))
            positions = int(config.get("max_position_embeddings", 1_048_576))
            try:
                found = await self.client.settings()
            except Dsv4Error:
                return positions
            given = [int(found[name]) for name in ("context_tokens", "cache_tokens") if found.get(name, "").isdigit()]
            self.max_model_len = min(positions, *given) if given else positions
        return self.max_model_len


def make_service(settings: GatewaySettings) -> Service:
    """Build the parts; call it inside the event loop that will serve. Raises: ConfigError."""
    vocabulary = Vocabulary.load(settings.checkpoint)
    marks = {token: token_id for token_id, token in enumerate(vocabulary.tokens) if token_id in vocabulary.special_ids}
    return Service(
        settings=settings,
        client=AsyncClient(settings.triton_url),
        encoder=ChatEncoder(settings.checkpoint),
        text=TextEncoder(settings.checkpoint),
        vocabulary=vocabulary,
        store=ResponseStore(max_entries=settings.max_stored_responses, max_bytes=settings.max_stored_bytes),
        call_mark_id=marks.get(_CALL_MARK),
    )
