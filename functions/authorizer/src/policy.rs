use aws_lambda_events::{
    apigw::ApiGatewayCustomAuthorizerResponse as AuthorizerResponse,
    iam::{IamPolicyEffect, IamPolicyStatement},
};
use karta_shared::http::AuthorizerContext;
use serde_json::json;

/// Returns the ARN of the whole stage for
/// `arn:aws:execute-api:<region>:<account>:<api>/<stage>/<method>/<path…>`.
pub(crate) fn stage_arn(method_arn: &str) -> String {
    method_arn.split('/').take(2).collect::<Vec<_>>().join("/") + "/*"
}

pub(crate) fn policy(effect: IamPolicyEffect, stage: String, caller: Option<&AuthorizerContext>) -> AuthorizerResponse {
    let mut statement = IamPolicyStatement::default();
    statement.action = vec!["execute-api:Invoke".to_owned()];
    statement.effect = effect;
    statement.resource = vec![stage];
    let mut response = AuthorizerResponse::default();
    response.policy_document.version = Some("2012-10-17".to_owned());
    response.policy_document.statement = vec![statement];
    let principal = caller.map(|caller| caller.principal.api_key_id.to_string());
    response.principal_id = Some(principal.unwrap_or_else(|| "nobody".to_owned()));
    response.context = json!(caller.map(AuthorizerContext::to_context).unwrap_or_default());
    response
}
