"""What the answers of Microsoft's token endpoint and of Microsoft Graph mean.

Microsoft asks that nobody depend on its texts and numbers, so `error` decides and an AADSTS number only refines it: an
unknown number is treated as its `error` says. Facts: facts/providers.md 4.2 (the numbers are those of
reference-error-codes.md; what they mean to us is ours).
"""

from __future__ import annotations

from service.playbook.words import CLIENT_ERRORS, Row

AADSTS = "https://learn.microsoft.com/en-us/entra/identity-platform/reference-error-codes"
GRAPH = "https://learn.microsoft.com/en-us/graph/errors"
THROTTLING = "https://learn.microsoft.com/en-us/graph/throttling"
CLAIMS = "https://learn.microsoft.com/en-us/entra/identity-platform/claims-challenge"


def aadsts(*numbers: int) -> tuple[str, ...]:
    return tuple(f"AADSTS{number}" for number in numbers)


MICROSOFT: tuple[Row, ...] = (
    Row(
        id="microsoft-revoked",
        provider="microsoft",
        codes=aadsts(50173),
        error_class="refresh_failed",
        action="reauthorize",
        state="revoked",
        credential="refresh_token",
        meaning="The grant was revoked; a new sign-in is needed.",
        sources=(AADSTS,),
    ),
    Row(
        id="microsoft-expired",
        provider="microsoft",
        codes=aadsts(700082, 700084),
        error_class="refresh_failed",
        action="reauthorize",
        state="expired",
        credential="refresh_token",
        meaning="The refresh token has expired: unused for too long, or one of a single-page app.",
        sources=(AADSTS,),
    ),
    Row(
        id="microsoft-sign-in",
        provider="microsoft",
        codes=aadsts(
            *(70008, 70043, 70000, 50089, 50132, 50133, 50072, 50074, 50076, 50078, 50079, 700020, 65001, 65004),
            *(50055, 50144),
        ),
        error_class="refresh_failed",
        action="reauthorize",
        state="unknown",
        credential="refresh_token",
        meaning="Microsoft wants the user to sign in: a grant that is over, a password, a second factor, or consent.",
        sources=(AADSTS,),
    ),
    Row(
        id="microsoft-client",
        provider="microsoft",
        codes=aadsts(7000215, 70002, 7000222, 700016, 70001, 7000112, 50011, 700027, 50196),
        error_class="refresh_failed",
        action="fix_client",
        credential="client",
        affects="connection",
        meaning="Microsoft does not take the app: its id, secret (maybe expired), certificate or redirect address, or it"
        " asks in a loop.",
        sources=(AADSTS,),
    ),
    Row(
        id="microsoft-scope",
        provider="microsoft",
        codes=aadsts(70011),
        error_class="insufficient_scope",
        action="request_scope",
        affects="connection",
        do="Check the scopes that the connector asks for; then ask the account's owner to consent again. Do not retry.",
        meaning="A scope asked for is not valid.",
        sources=(AADSTS,),
    ),
    Row(
        id="microsoft-policy",
        provider="microsoft",
        codes=aadsts(*(53000, 53001, 53002, 53003, 53011, 530032, 530035, 50105, 50020, 50057, 90094, 65005, 650052)),
        error_class="refresh_failed",
        action="ask_admin",
        affects="organization",
        meaning="A policy or an administrator of the account's organization stands in the way: conditional access, an"
        " assignment, a disabled user or consent that only they can give.",
        sources=(AADSTS,),
    ),
    Row(
        id="microsoft-throttled",
        provider="microsoft",
        codes=aadsts(90055),
        error_class="rate_limited",
        action="wait_and_retry",
        affects="provider",
        meaning="Microsoft's sign-in gets too many requests.",
        sources=(AADSTS,),
    ),
    Row(
        id="microsoft-transient",
        provider="microsoft",
        codes=aadsts(50033, 50087, 90006, 90012, 90024, 90033, 90090, 90091, 40010, 80005, 70012),
        error_class="upstream_5xx",
        action="retry_with_backoff",
        affects="provider",
        meaning="Microsoft's sign-in failed for now. It says nothing about the token.",
        sources=(AADSTS,),
    ),
    Row(
        id="microsoft-claims",
        provider="microsoft",
        codes=("insufficient_claims",),
        error_class="refresh_failed",
        action="reauthorize",
        credential="access_token",
        do="Send the account's owner through a sign-in with the claims that the answer asks for. A plain refresh is refused"
        " again.",
        meaning="Microsoft no longer takes this access token without a new sign-in: something about the user or a policy"
        " changed. It does not say what.",
        sources=(CLAIMS, GRAPH),
    ),
    Row(
        id="graph-token",
        provider="microsoft",
        codes=("InvalidAuthenticationToken", "unauthenticated"),
        error_class="token_expired",
        action="refresh_once",
        state="unknown",
        credential="access_token",
        meaning="Microsoft Graph does not take this access token. It has one code for expired and for invalid ones; one"
        " refresh tells.",
        sources=(GRAPH,),
    ),
    Row(
        id="graph-permission",
        provider="microsoft",
        codes=("Authorization_RequestDenied", "ErrorAccessDenied", "accessDenied"),
        error_class="insufficient_scope",
        action="request_scope",
        meaning="The app or the user has no permission for this.",
        sources=(GRAPH,),
    ),
    Row(
        id="graph-throttled",
        provider="microsoft",
        codes=("TooManyRequests", "activityLimitReached", "ApplicationThrottled"),
        error_class="rate_limited",
        action="wait_and_retry",
        affects="provider",
        meaning="Microsoft Graph gets too many requests.",
        sources=(THROTTLING,),
    ),
    Row(
        id="graph-parameters",
        provider="microsoft",
        codes=("BadRequest", "Request_BadRequest", "invalidRequest"),
        statuses=CLIENT_ERRORS,
        error_class="malformed_params",
        action="fix_parameters",
        affects="call",
        meaning="A parameter is missing or wrong.",
        sources=(GRAPH,),
    ),
    Row(
        id="graph-unavailable",
        provider="microsoft",
        codes=("serviceNotAvailable", "generalException"),
        error_class="upstream_5xx",
        action="retry_with_backoff",
        affects="provider",
        meaning="Microsoft Graph failed. It says nothing about the token.",
        sources=(GRAPH,),
    ),
)
