"""What the answers of Box, Atlassian, Auth0 and Stripe mean. Facts: facts/providers.md 4.2 and the pages each row names."""

from __future__ import annotations

from service.playbook.words import CLIENT_ERRORS, Row

BOX_REFRESH = "https://developer.box.com/guides/authentication/tokens/refresh/"
BOX_STAFF = "https://support.box.com/hc/en-us/community/posts/15765421154323"
BOX_ERRORS = "https://developer.box.com/guides/api-calls/permissions-and-errors/common-errors/"
ATLASSIAN_REFRESH = "https://developer.atlassian.com/cloud/jira/platform/oauth-2-3lo-apps/"
ATLASSIAN_CASES = "https://nango.dev/blog/jira-oauth-refresh-token-invalid-grant"
ATLASSIAN_SCOPE = (
    "https://community.atlassian.com/forums/Jira-questions/"
    "OAuth-3LO-Access-Token-Returns-401-quot-Unauthorized-scope-does/qaq-p/3062781"
)
ATLASSIAN_LIMITS = "https://developer.atlassian.com/cloud/jira/platform/rate-limiting/"
AUTH0_REFRESH = "https://auth0.com/docs/secure/tokens/refresh-tokens"
AUTH0_LIMITS = "https://auth0.com/docs/troubleshoot/customer-support/operational-policies/rate-limit-policy"
STRIPE_ERRORS = "https://docs.stripe.com/error-low-level"
STRIPE_CODES = "https://docs.stripe.com/error-codes"
STRIPE_KEYS = "https://docs.stripe.com/api/idempotent_requests"

BOX: tuple[Row, ...] = (
    Row(
        id="box-refresh-expired",
        provider="box",
        codes=("invalid_grant",),
        phrases=("refresh token has expired",),
        error_class="refresh_failed",
        action="reauthorize",
        state="expired",
        credential="refresh_token",
        do="Read the account's token once more: a refresh token works once, and another process may just have used it. If"
        " none is newer, ask the account's owner to authorize it again. Do not retry.",
        meaning="Box says that the refresh token has expired: after 60 days, or because it was used.",
        sources=(BOX_REFRESH, BOX_STAFF),
    ),
    Row(
        id="box-permission",
        provider="box",
        codes=("access_denied_insufficient_permissions", "forbidden_by_policy"),
        error_class="insufficient_scope",
        action="request_scope",
        meaning="The user or the app has no permission on this item.",
        sources=(BOX_ERRORS,),
    ),
    Row(
        id="box-rate-limited",
        provider="box",
        codes=("rate_limit_exceeded", "too_many_requests"),
        error_class="rate_limited",
        action="wait_and_retry",
        affects="account",
        meaning="Too many requests of this user.",
        sources=(BOX_ERRORS,),
    ),
    Row(
        id="box-exists",
        provider="box",
        codes=("item_name_in_use", "name_temporarily_reserved"),
        error_class="other",
        action="check_state",
        affects="call",
        do="An item of that name is there, maybe by your own earlier try: read it, and do not upload it again.",
        meaning="The name is taken in this folder.",
        sources=(BOX_ERRORS,),
    ),
)

ATLASSIAN: tuple[Row, ...] = (
    Row(
        id="atlassian-invalid-grant",
        provider="atlassian",
        codes=("invalid_grant",),
        error_class="refresh_failed",
        action="reauthorize",
        state="unknown",
        credential="refresh_token",
        do="Read the account's token once more: refresh tokens rotate, and another process may just have used this one. If"
        " none is newer, ask the account's owner to authorize it again. Do not retry.",
        meaning="Atlassian does not know this refresh token or no longer takes it: unused for 90 days, used before, or a"
        " changed password. It answers 403 and does not say which.",
        sources=(ATLASSIAN_REFRESH, ATLASSIAN_CASES),
    ),
    Row(
        id="atlassian-client",
        provider="atlassian",
        codes=("access_denied",),
        error_class="refresh_failed",
        action="fix_client",
        credential="client",
        affects="connection",
        meaning="Atlassian's token endpoint says access_denied when the client secret is wrong.",
        sources=(ATLASSIAN_CASES,),
    ),
    Row(
        id="atlassian-scope",
        provider="atlassian",
        statuses=(401, 403),
        phrases=("scope does not match",),
        error_class="insufficient_scope",
        action="request_scope",
        credential="access_token",
        meaning="The token's scopes do not fit this call. Atlassian says so with a 401: no refresh mends it.",
        sources=(ATLASSIAN_SCOPE,),
    ),
    Row(
        id="atlassian-rate-limited",
        provider="atlassian",
        statuses=(429,),
        error_class="rate_limited",
        action="wait_and_retry",
        affects="organization",
        meaning="Too many requests; `RateLimit-Reason` says which limit.",
        sources=(ATLASSIAN_LIMITS,),
    ),
)

AUTH0: tuple[Row, ...] = (
    Row(
        id="auth0-invalid-grant",
        provider="auth0",
        codes=("invalid_grant",),
        error_class="refresh_failed",
        action="reauthorize",
        state="unknown",
        credential="refresh_token",
        meaning="Auth0 does not know this refresh token or no longer takes it: expired, revoked, used before, or one of more"
        " than 200. It answers 403.",
        sources=(AUTH0_REFRESH, "https://support.auth0.com"),
    ),
    Row(
        id="auth0-rate-limited",
        provider="auth0",
        codes=("too_many_requests",),
        error_class="rate_limited",
        action="wait_and_retry",
        affects="connection",
        meaning="The tenant's rate limit is used up.",
        sources=(AUTH0_LIMITS,),
    ),
)

STRIPE: tuple[Row, ...] = (
    Row(
        id="stripe-key-misused",
        provider="stripe",
        codes=("idempotency_error",),
        error_class="malformed_params",
        action="human_review",
        affects="call",
        do="Do not retry, and do not make a new key: look up what the first request with this key did.",
        meaning="The same Idempotency-Key was sent with other parameters or to another endpoint.",
        sources=(STRIPE_KEYS, STRIPE_ERRORS),
    ),
    Row(
        id="stripe-key-in-use",
        provider="stripe",
        codes=("idempotency_key_in_use",),
        error_class="other",
        action="retry_with_backoff",
        affects="call",
        do="Wait and repeat it with the same key: the first request is still running. Two retries within 60 seconds at most.",
        meaning="A request with the same Idempotency-Key is still running.",
        sources=(STRIPE_ERRORS, STRIPE_CODES),
    ),
    Row(
        id="stripe-rate-limited",
        provider="stripe",
        codes=("rate_limit", "lock_timeout"),
        error_class="rate_limited",
        action="wait_and_retry",
        affects="provider",
        meaning="Too many requests, or the object is locked by another one.",
        sources=(STRIPE_CODES, "https://docs.stripe.com/rate-limits"),
    ),
    Row(
        id="stripe-key-of-the-api",
        provider="stripe",
        codes=("api_key_expired", "platform_api_key_expired", "account_invalid"),
        statuses=CLIENT_ERRORS,
        error_class="refresh_failed",
        action="reauthorize",
        credential="access_token",
        meaning="Stripe no longer takes the key, or the connected account took the access away.",
        sources=(STRIPE_CODES,),
    ),
    Row(
        id="stripe-declined",
        provider="stripe",
        codes=("card_error",),
        error_class="other",
        action="stop_and_surface",
        affects="call",
        do="Do not retry: show the decline to whoever owns the payment.",
        meaning="The card was declined. The call itself worked.",
        sources=(STRIPE_ERRORS,),
    ),
    Row(
        id="stripe-parameters",
        provider="stripe",
        codes=("invalid_request_error", "parameter_missing", "parameter_invalid_empty", "parameter_unknown"),
        statuses=(400, 422),
        error_class="malformed_params",
        action="fix_parameters",
        affects="call",
        meaning="A parameter is missing or wrong.",
        sources=(STRIPE_CODES,),
    ),
)
