"""What Google's and Salesforce's answers mean. Google says it in `errors[].reason`, `status` or an ErrorInfo's `reason`;
Salesforce in `errorCode`. Facts: facts/providers.md 4.2 and the pages each row names."""

from __future__ import annotations

from service.playbook.words import CLIENT_ERRORS, Row

GOOGLE_EXPIRATION = "https://developers.google.com/identity/protocols/oauth2#expiration"
GOOGLE_ERRORS = "https://developers.google.com/workspace/gmail/api/guides/handle-errors"
GOOGLE_CALENDAR_ERRORS = "https://developers.google.com/workspace/calendar/api/guides/errors"
GOOGLE_ADS_ERRORS = "https://developers.google.com/google-ads/api/docs/get-started/common-errors"
GOOGLE_REASONS = "https://github.com/googleapis/googleapis/blob/master/google/api/error_reason.proto"
GOOGLE_RPC = "https://cloud.google.com/apis/design/errors"
SALESFORCE_ERRORS = "https://developer.salesforce.com/docs/platform/api-rest/guide/errorcodes.html"
SALESFORCE_GRANT = "https://nango.dev/blog/salesforce-oauth-refresh-token-invalid-grant"
SALESFORCE_SESSION = "https://nango.dev/blog/fix-salesforce-invalid-session-id-error"
SALESFORCE_EXTERNAL = "https://developer.salesforce.com/docs/platform/api-rest/guide/dome-upsert.html"

GOOGLE: tuple[Row, ...] = (
    Row(
        id="google-token-expired",
        provider="google",
        codes=("ACCESS_TOKEN_EXPIRED",),
        error_class="token_expired",
        action="refresh_once",
        state="expired",
        credential="access_token",
        meaning="Google says that the access token has expired.",
        sources=(GOOGLE_REASONS,),
    ),
    Row(
        id="google-invalid-grant",
        provider="google",
        codes=("invalid_grant",),
        error_class="refresh_failed",
        action="reauthorize",
        state="expired_or_revoked",
        credential="refresh_token",
        do="Ask the account's owner to authorize it again. Do not retry. If many accounts fail a week after they were"
        " authorized, the Google project is still in Testing: publish it.",
        meaning="Google no longer takes this refresh token: removed by its owner, unused for six months, a changed"
        " password, or one of too many. Google does not say which.",
        sources=(GOOGLE_EXPIRATION, GOOGLE_ADS_ERRORS),
    ),
    Row(
        id="google-rate-limited",
        provider="google",
        codes=(
            "rateLimitExceeded",
            "userRateLimitExceeded",
            "quotaExceeded",
            "RATE_LIMIT_EXCEEDED",
            "RESOURCE_EXHAUSTED",
        ),
        statuses=CLIENT_ERRORS,
        error_class="rate_limited",
        action="wait_and_retry",
        affects="provider",
        meaning="A quota per minute is used up. Google may say so with a 403.",
        sources=(GOOGLE_ERRORS, GOOGLE_CALENDAR_ERRORS),
    ),
    Row(
        id="google-daily-limit",
        provider="google",
        codes=("dailyLimitExceeded",),
        statuses=CLIENT_ERRORS,
        error_class="rate_limited",
        action="open_circuit",
        affects="provider",
        do="Stop calling and queue the step until the daily quota begins anew; ask for more quota if this is usual.",
        meaning="The project's quota of the day is used up: no backoff is long enough.",
        sources=(GOOGLE_ERRORS,),
    ),
    Row(
        id="google-scope",
        provider="google",
        codes=("ACCESS_TOKEN_SCOPE_INSUFFICIENT", "insufficientPermissions", "insufficientScopes"),
        error_class="insufficient_scope",
        action="request_scope",
        credential="access_token",
        meaning="The access token was not granted the scope that this call needs.",
        sources=(GOOGLE_ADS_ERRORS, GOOGLE_ERRORS),
    ),
    Row(
        id="google-domain-policy",
        provider="google",
        codes=("domainPolicy", "admin_policy_enforced", "org_internal", "USER_BLOCKED_BY_ADMIN"),
        error_class="other",
        action="ask_admin",
        affects="organization",
        meaning="The administrator of the account's Google domain does not allow this app.",
        sources=(GOOGLE_ERRORS, GOOGLE_REASONS),
    ),
    Row(
        id="google-unauthenticated",
        provider="google",
        codes=("authError", "UNAUTHENTICATED"),
        statuses=(200, 401),
        error_class="token_expired",
        action="refresh_once",
        state="unknown",
        credential="access_token",
        meaning="Google does not take this access token: expired, invalid or without the scope. It does not say which; one"
        " refresh tells.",
        sources=(GOOGLE_ERRORS, GOOGLE_CALENDAR_ERRORS),
    ),
    Row(
        id="google-duplicate",
        provider="google",
        codes=("duplicate", "ALREADY_EXISTS"),
        error_class="other",
        action="check_state",
        affects="call",
        do="It is there already, maybe by your own earlier try: read it by its id, and do not write it again.",
        meaning="Something of this id exists.",
        sources=(GOOGLE_CALENDAR_ERRORS,),
    ),
    Row(
        id="google-invalid-argument",
        provider="google",
        codes=("badRequest", "INVALID_ARGUMENT", "invalidParameter"),
        statuses=CLIENT_ERRORS,
        error_class="malformed_params",
        action="fix_parameters",
        affects="call",
        meaning="A parameter is missing or wrong.",
        sources=(GOOGLE_ERRORS, GOOGLE_RPC),
    ),
    Row(
        id="google-unavailable",
        provider="google",
        codes=("backendError", "internalError", "UNAVAILABLE", "DEADLINE_EXCEEDED"),
        error_class="upstream_5xx",
        action="retry_with_backoff",
        affects="provider",
        meaning="Google failed. It says nothing about the token.",
        sources=(GOOGLE_ERRORS, GOOGLE_RPC),
    ),
)

SALESFORCE: tuple[Row, ...] = (
    Row(
        id="salesforce-login-failed",
        provider="salesforce",
        codes=("invalid_grant",),
        phrases=("authentication failure",),
        error_class="refresh_failed",
        action="reauthorize",
        meaning="Salesforce did not let the user in: a password, a blocked user, or a login policy. It does not say which.",
        sources=(SALESFORCE_GRANT,),
    ),
    Row(
        id="salesforce-invalid-grant",
        provider="salesforce",
        codes=("invalid_grant",),
        error_class="refresh_failed",
        action="reauthorize",
        state="expired_or_revoked",
        credential="refresh_token",
        do="Ask the account's owner to authorize it again. Do not retry. If it fails again at once, the connected app's"
        " refresh token policy lets tokens expire immediately: ask their administrator.",
        meaning='Salesforce no longer takes this refresh token. Its words "expired access/refresh token" stand for revoked'
        " ones and for the oldest of too many as well.",
        sources=(SALESFORCE_GRANT, "https://help.merge.dev/en/articles/9077062"),
    ),
    Row(
        id="salesforce-session",
        provider="salesforce",
        codes=("INVALID_SESSION_ID",),
        statuses=(200, 401),
        error_class="token_expired",
        action="refresh_once",
        state="unknown",
        credential="access_token",
        meaning="The session is over or not valid here: expired, revoked, another instance or an IP rule. Salesforce gives"
        " one code for all; one refresh tells.",
        sources=(SALESFORCE_ERRORS, SALESFORCE_SESSION),
    ),
    Row(
        id="salesforce-request-limit",
        provider="salesforce",
        codes=("REQUEST_LIMIT_EXCEEDED",),
        error_class="rate_limited",
        action="wait_and_retry",
        affects="organization",
        do="Wait as long as Salesforce asks, else back off; three retries at most. It is the whole organization's limit of 24"
        " hours: if retries do not help, queue the step.",
        meaning="The organization has used up its API requests. Salesforce says so with a 403.",
        sources=(SALESFORCE_ERRORS,),
    ),
    Row(
        id="salesforce-access",
        provider="salesforce",
        codes=(
            "INSUFFICIENT_ACCESS",
            "INSUFFICIENT_ACCESS_OR_READONLY",
            "INSUFFICIENT_ACCESS_ON_CROSS_REFERENCE_ENTITY",
            "INSUFFICIENT_PRIVILEGES",
        ),
        error_class="insufficient_scope",
        action="ask_admin",
        affects="organization",
        do="Ask their Salesforce administrator for the permission on this object or record. Do not retry.",
        meaning="The user may not do this to this record. It is a permission inside Salesforce and no OAuth scope.",
        sources=(SALESFORCE_ERRORS,),
    ),
    Row(
        id="salesforce-api-disabled",
        provider="salesforce",
        codes=("API_DISABLED_FOR_ORG", "API_CURRENTLY_DISABLED"),
        error_class="other",
        action="ask_admin",
        affects="organization",
        meaning="The organization or the user has no API access.",
        sources=(SALESFORCE_ERRORS,),
    ),
    Row(
        id="salesforce-duplicate",
        provider="salesforce",
        codes=("DUPLICATE_VALUE", "DUPLICATES_DETECTED", "DUPLICATE_EXTERNAL_ID"),
        error_class="other",
        action="check_state",
        affects="call",
        do="It is there already, maybe by your own earlier try: read it by its external id, and do not write it again.",
        meaning="A record of this value exists.",
        sources=(SALESFORCE_ERRORS, SALESFORCE_EXTERNAL),
    ),
    Row(
        id="salesforce-locked",
        provider="salesforce",
        codes=("UNABLE_TO_LOCK_ROW",),
        error_class="other",
        action="stop_and_surface",
        affects="call",
        do="Do not retry in a loop: a 400 is never retried by itself. Queue the step for later, one writer at a time.",
        meaning="Someone else was writing the record. The parameters were not the problem.",
        sources=(SALESFORCE_ERRORS,),
    ),
    Row(
        id="salesforce-parameters",
        provider="salesforce",
        codes=(
            "MALFORMED_QUERY",
            "INVALID_FIELD",
            "REQUIRED_FIELD_MISSING",
            "JSON_PARSER_ERROR",
            "MALFORMED_ID",
            "INVALID_TYPE",
        ),
        error_class="malformed_params",
        action="fix_parameters",
        affects="call",
        meaning="The query or a field is wrong.",
        sources=(SALESFORCE_ERRORS,),
    ),
    Row(
        id="salesforce-unavailable",
        provider="salesforce",
        codes=("SERVER_UNAVAILABLE", "UNKNOWN_EXCEPTION"),
        error_class="upstream_5xx",
        action="retry_with_backoff",
        affects="provider",
        meaning="Salesforce failed. It says nothing about the token.",
        sources=(SALESFORCE_ERRORS,),
    ),
)
