"""What every adapter does alike: the first grant, what a fallback can do, what a cut one says.

Plain values; nothing here calls anything.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Final

from bursar._convert import invalid

__all__ = ["BUDGET_EXHAUSTED", "NOTICES", "Capability", "Policy"]

BUDGET_EXHAUSTED: Final = "budget_exhausted"
"""The stop reason of a generation that the budget has cut."""

NOTICES: Final[Mapping[str, str]] = MappingProxyType(
    {
        "de": "\n\n[Abgebrochen: Das Rechenbudget von {account} ist erschöpft.]",
        "en": "\n\n[Stopped: the compute budget of {account} is exhausted.]",
        "es": "\n\n[Interrumpido: el presupuesto de cómputo de {account} se ha agotado.]",
        "fr": "\n\n[Interrompu : le budget de calcul de {account} est épuisé.]",
    }
)
"""Language → the termination notice; ``{account}`` stands for the account that spends."""

MAX_NEW_TOKENS: Final = 4096


@dataclass(frozen=True, slots=True)
class Capability:
    """What a model can do, or what a call needs, beyond a text after a text.

    Attributes:
        tools: Calls of tools.
        media: Pictures, sounds and files.
        context_tokens: Prompt and output together; of a model, None: as many as anybody asks for.
    """

    tools: bool = False
    media: bool = False
    context_tokens: int | None = None

    def lacking(self, needs: "Capability") -> str:
        """What a call needs and this model cannot do; empty: nothing."""
        if needs.tools and not self.tools:
            return "it takes no tools"
        if needs.media and not self.media:
            return "it takes no pictures, sounds or files"
        room, wanted = self.context_tokens, needs.context_tokens or 0
        return "" if room is None or wanted <= room else f"it holds {room} tokens of {wanted}"


@dataclass(frozen=True, slots=True)
class Policy:
    """How the adapters reserve and cut.

    Attributes:
        first_grant: How many output tokens are reserved before the first step; more is taken from
            the budget as they run low. None: all that the call may generate, or what is left of
            the budget, so that engines and providers can be told their limit in advance.
        max_new_tokens: The limit of a call that names none itself.
        language: Which of the notices is appended to what was cut.
        notices: Language → notice.
        ttl_s: Seconds until a reservation expires: no generation lasts longer. That of a process
            which has ended on this host goes back at once.
        labels: Names for the history, on every reservation.
        capabilities: Fallback model → what it can do; one that is not there takes texts only, and
            a call that needs more stays with its own model.
        metrics_by_account: Whether OpenTelemetry's metrics have the account as an attribute: a time
            series of each for every account.
    """

    first_grant: int | None = None
    max_new_tokens: int = MAX_NEW_TOKENS
    language: str = "en"
    notices: Mapping[str, str] = field(default_factory=lambda: NOTICES)
    ttl_s: float = 600.0
    labels: Mapping[str, str] = field(default_factory=dict)
    capabilities: Mapping[str, Capability] = field(default_factory=dict)
    metrics_by_account: bool = False

    def __post_init__(self) -> None:
        if self.first_grant is not None and self.first_grant < 1:
            raise invalid(f"{self.first_grant}: grant at least 1 token", field="first_grant")
        if self.max_new_tokens < 1:
            raise invalid(f"{self.max_new_tokens}: allow at least 1 token", field="max_new_tokens")
        if self.language not in self.notices:
            known = ", ".join(sorted(self.notices))
            raise invalid(f"{self.language!r}: there are notices in {known}", field="language")

    def notice(self, account: str) -> str:
        """What is appended to a generation of this account that the budget has cut."""
        return self.notices[self.language].replace("{account}", account)
