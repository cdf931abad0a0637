//! API Gateway's TOKEN authorizer. It returns the Principal as a flat context, with a policy for
//! the whole stage.
//!
//! An invalid credential results in a Deny, which API Gateway caches like an Allow, so a flood of
//! one invalid token costs one bcrypt comparison. A fault is an error, which is never cached and
//! becomes a 503. The route frame checks scopes, projects and addresses on every request, because
//! the cached policy covers every route of the token.

mod policy;

use std::process::ExitCode;

use aws_lambda_events::{
    apigw::{ApiGatewayCustomAuthorizerRequest as Event, ApiGatewayCustomAuthorizerResponse as Answer},
    iam::IamPolicyEffect,
};
use karta_shared::{
    App, Needs,
    auth::{self, GATEWAY_VERDICT_MAX_AGE, RecordUse, SessionClaims, SessionTokenError, Undecided, Validator, Verdict},
    config::{DEADLINE, Ring, Secret},
    http::AuthorizerContext,
    telemetry,
};
use lambda_runtime::{LambdaEvent, service_fn};
use tokio::time::timeout;

use self::policy::{policy, stage_arn};

/// The name of the function's folder, also used in logs.
pub const NAME: &str = "authorizer";

#[derive(Debug)]
pub struct Authorizer {
    app: App,
    validator: Validator,
}

impl Authorizer {
    pub fn new(app: App) -> Self {
        Self { validator: Validator::new(app.clone()), app }
    }

    /// Checks the `Authorization` header of a request to `method_arn`.
    pub async fn authorize(&self, event: &Event) -> Result<Answer, Undecided> {
        let caller = if let Some(token) = event.authorization_token.as_deref().and_then(auth::bearer) {
            timeout(self.app.deadlines.scale(DEADLINE), self.caller(token))
                .await
                .map_err(|_| Undecided::OutOfTime)??
        } else {
            self.count("malformed");
            Err("malformed")
        };
        let stage = stage_arn(event.method_arn.as_deref().unwrap_or_default());
        Ok(match caller {
            Ok(caller) => {
                let (organization_id, api_key_id) =
                    (caller.principal.organization_id.get(), caller.principal.api_key_id.get());
                tracing::info!(route = NAME, outcome = "valid", organization_id, api_key_id, "authorization");
                policy(IamPolicyEffect::Allow, stage, Some(&caller))
            }
            Err(outcome) => {
                tracing::info!(route = NAME, outcome, "authorization");
                policy(IamPolicyEffect::Deny, stage, None)
            }
        })
    }

    /// Returns the token's caller, or a word for the log that says why it is rejected.
    async fn caller(&self, token: &str) -> Result<Result<AuthorizerContext, &'static str>, Undecided> {
        if token.starts_with("kt_live_") {
            let verdict = self.validator.validate_for_cache(token, RecordUse::Always, GATEWAY_VERDICT_MAX_AGE).await?;
            return Ok(match verdict {
                Verdict::Valid(valid) => Ok(AuthorizerContext::api_key(&valid)),
                Verdict::Invalid(why) => Err(why.as_str()),
            });
        }
        let session = self.session(token).await;
        self.count(match &session {
            Ok(Ok(_)) => "valid",
            Ok(Err(why)) => why.as_str(),
            Err(_) => "undecided",
        });
        Ok(session?.map(AuthorizerContext::session).map_err(SessionTokenError::as_str))
    }

    /// Counts outcomes for everything except API keys, which the validator counts.
    fn count(&self, outcome: &str) {
        self.app.metrics.validation(self.app.clock.now(), outcome, None);
    }

    /// Verifies a session token. An unknown key id triggers a refetch of the ring, because the key
    /// may be new.
    async fn session(&self, token: &str) -> Result<Result<SessionClaims, SessionTokenError>, Undecided> {
        let (now, secrets) = (self.app.clock.now().as_seconds(), &self.app.secrets);
        let verdict = auth::verify(&*secrets.ring(Ring::SessionSigning).await?, token, now);
        if verdict != Err(SessionTokenError::UnknownKid) {
            return Ok(verdict);
        }
        Ok(auth::verify(&*secrets.ring_refetched(Ring::SessionSigning).await?, token, now))
    }
}

/// Runs the authorizer as a Lambda function.
pub async fn run() -> ExitCode {
    let served = async {
        telemetry::init(telemetry::Output::Stdout, "info")?;
        let secrets = [Ring::KeyTag, Ring::SessionSigning].map(Secret::Ring).to_vec();
        let authorizer = &Authorizer::new(App::deployed(NAME, Needs { secrets, store: true }).await?);
        let handler = move |event: LambdaEvent<Event>| async move {
            authorizer.authorize(&event.payload).await.map_err(|fault| {
                tracing::error!(route = NAME, %fault, "authorization undecided");
                lambda_runtime::Error::from("the credential could not be checked")
            })
        };
        lambda_runtime::run(service_fn(handler)).await
    };
    telemetry::exit_code(NAME, Box::pin(served).await)
}
