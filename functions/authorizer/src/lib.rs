//! API Gateway's authorizers. Both return the Principal as a flat context, with a policy for the
//! whole stage.
//!
//! The TOKEN authorizer serves most routes. An invalid credential results in a Deny, which API
//! Gateway caches like an Allow, so a flood of one invalid token costs one bcrypt comparison. The
//! route frame checks scopes, projects and addresses on every request, because the cached policy
//! covers every route of the token.
//!
//! The REQUEST authorizer serves the data plane, where each request may cost money. API Gateway
//! caches none of its verdicts and calls it even without an `Authorization` header. It also reads
//! the current state of the key that minted a session token.
//!
//! A fault is an error, which is never cached and becomes a 503.

mod event;
mod policy;
mod session;

use std::process::ExitCode;

use aws_lambda_events::{apigw::ApiGatewayCustomAuthorizerResponse as AuthorizerResponse, iam::IamPolicyEffect};
use karta_shared::{
    App, Needs,
    auth::{self, GATEWAY_VERDICT_MAX_AGE, RecordUse, Undecided, Validator, Verdict},
    config::{DEADLINE, Ring, Secret},
    http::AuthorizerContext,
    telemetry,
};
use lambda_runtime::{LambdaEvent, service_fn};
use tokio::time::timeout;

pub use self::event::AuthorizerEvent;
use self::{
    event::EventKind,
    policy::{policy, stage_arn},
};

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

    /// Checks the `Authorization` header of a request.
    pub async fn authorize(&self, event: &AuthorizerEvent) -> Result<AuthorizerResponse, Undecided> {
        let caller = if let Some(token) = event.authorization().and_then(auth::bearer) {
            timeout(self.app.deadlines.scale(DEADLINE), self.caller(token, event.kind()))
                .await
                .map_err(|_| Undecided::OutOfTime)??
        } else {
            self.count("malformed");
            Err("malformed")
        };
        let stage = stage_arn(event.method_arn());
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
    ///
    /// Every call reads the API key's state. A verdict whose state is older than
    /// [`GATEWAY_VERDICT_MAX_AGE`] is not returned, so a slow read cannot return old state.
    async fn caller(&self, token: &str, kind: EventKind) -> Result<Result<AuthorizerContext, &'static str>, Undecided> {
        if token.starts_with("kt_live_") {
            let verdict = self.validator.validate_for_cache(token, RecordUse::Always, GATEWAY_VERDICT_MAX_AGE).await?;
            return Ok(match verdict {
                Verdict::Valid(valid) => Ok(AuthorizerContext::api_key(&valid)),
                Verdict::Invalid(why) => Err(why.as_str()),
            });
        }
        let caller = match kind {
            EventKind::Token => self.session(token).await.map(|verdict| verdict.map(AuthorizerContext::session)),
            EventKind::Request => self.current_session(token).await,
        };
        self.count(match &caller {
            Ok(Ok(_)) => "valid",
            Ok(Err(why)) => why,
            Err(_) => "undecided",
        });
        caller
    }

    /// Counts outcomes for everything except API keys, which the validator counts.
    fn count(&self, outcome: &str) {
        self.app.metrics.validation(self.app.clock.now(), outcome, None);
    }
}

/// Runs the authorizer as a Lambda function.
pub async fn run() -> ExitCode {
    let served = async {
        telemetry::init(telemetry::Output::Stdout, "info")?;
        let secrets = [Ring::KeyTag, Ring::SessionSigning].map(Secret::Ring).to_vec();
        let authorizer = &Authorizer::new(App::deployed(NAME, Needs { secrets, store: true }).await?);
        let handler = move |event: LambdaEvent<AuthorizerEvent>| async move {
            authorizer.authorize(&event.payload).await.map_err(|fault| {
                tracing::error!(route = NAME, %fault, "authorization failed");
                lambda_runtime::Error::from("the credential could not be checked")
            })
        };
        lambda_runtime::run(service_fn(handler)).await
    };
    telemetry::exit_code(NAME, Box::pin(served).await)
}
