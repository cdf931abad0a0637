use super::{ModelId, Provider};

/// The model that a turn uses.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ModelChoice {
    /// The name as it was configured or requested. Usage and prices use it.
    pub model: ModelId,
    pub provider: Provider,
}

/// Why no model can be used.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ModelRefused {
    /// Nothing is configured and the request names none.
    Required,
    /// The caller may not use the model. Lists the models that the caller may name.
    NotAllowed { allowed: Vec<ModelId> },
}

/// Decides which model a request may name.
#[derive(Debug, Clone, Copy)]
pub struct ModelRule<'a> {
    /// The project's model, or else the organization's.
    pub configured: Option<&'a ModelId>,
    /// Whether the caller may name any priced model of a provider with a key: true for API keys,
    /// false for session tokens.
    pub may_choose: bool,
}

impl ModelRule<'_> {
    /// Chooses a turn's model. `is_priced` returns whether a model has a price, `has_key` whether
    /// the organization has an active key of a provider.
    pub fn choose(
        self,
        requested: Option<&str>,
        is_priced: impl Fn(&str) -> bool,
        has_key: impl Fn(Provider) -> bool,
    ) -> Result<ModelChoice, ModelRefused> {
        // A configured model without a provider cannot be used either.
        let usable = self.configured.filter(|model| provider_of(model.as_str()).is_some());
        let not_allowed = || ModelRefused::NotAllowed { allowed: usable.cloned().into_iter().collect() };
        let chosen = |model: &ModelId| {
            let provider = provider_of(model.as_str()).ok_or_else(not_allowed)?;
            Ok(ModelChoice { model: model.clone(), provider })
        };
        let requested = requested.filter(|name| *name != ModelChoice::DEFAULT);
        match (requested, self.configured) {
            (None, None) => Err(ModelRefused::Required),
            (None, Some(configured)) => chosen(configured),
            (Some(name), Some(configured)) if name == configured.as_str() => chosen(configured),
            (Some(name), _) if self.may_choose => {
                let named = ModelId::try_from(name.to_owned()).map_err(|_| not_allowed())?;
                let choice = chosen(&named)?;
                if is_priced(name) && has_key(choice.provider) { Ok(choice) } else { Err(not_allowed()) }
            }
            (Some(_), _) => Err(not_allowed()),
        }
    }
}

impl ModelChoice {
    /// A request's name for the configured model.
    pub const DEFAULT: &str = "default";

    /// Returns the name that the provider knows: without the segment that names the provider.
    pub fn upstream_name(&self) -> &str {
        let name = self.model.as_str();
        match leading_provider(name) {
            Some((_, rest)) => rest,
            None => name,
        }
    }
}

/// Splits off one leading segment that equals a provider's name: `openai/gpt-…`.
fn leading_provider(model: &str) -> Option<(Provider, &str)> {
    let (first, rest) = model.split_once('/')?;
    let provider = Provider::ALL.into_iter().find(|provider| provider.as_str() == first)?;
    (!rest.is_empty()).then_some((provider, rest))
}

/// Returns the provider that a model's name leads to; `None` if it leads to none.
fn provider_of(model: &str) -> Option<Provider> {
    if let Some((provider, _)) = leading_provider(model) {
        return Some(provider);
    }
    let is_numbered = |start: &str| {
        let rest = model.strip_prefix(start);
        rest.is_some_and(|rest| rest.starts_with(|next: char| next.is_ascii_digit()))
    };
    if model.starts_with("claude") {
        Some(Provider::Anthropic)
    } else if model.starts_with("gpt") || model.starts_with("chatgpt") || is_numbered("o") {
        Some(Provider::OpenAi)
    } else {
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn model(name: &str) -> ModelId {
        ModelId::try_from(name.to_owned()).unwrap()
    }

    fn choose(
        configured: Option<&str>,
        may_choose: bool,
        requested: Option<&str>,
    ) -> Result<(String, Provider), ModelRefused> {
        let configured = configured.map(model);
        let rule = ModelRule { configured: configured.as_ref(), may_choose };
        let is_priced = |name: &str| !name.contains("unpriced");
        let has_key = |provider| provider != Provider::OpenRouter;
        let chosen = rule.choose(requested, is_priced, has_key);
        chosen.map(|choice| (choice.upstream_name().to_owned(), choice.provider))
    }

    #[test]
    fn provider_follows_from_the_name() {
        for (name, expected) in [
            ("claude-sonnet-4-5", Some((Provider::Anthropic, "claude-sonnet-4-5"))),
            ("anthropic/claude-sonnet-4-5", Some((Provider::Anthropic, "claude-sonnet-4-5"))),
            ("gpt-5", Some((Provider::OpenAi, "gpt-5"))),
            ("chatgpt-4o-latest", Some((Provider::OpenAi, "chatgpt-4o-latest"))),
            ("o3-mini", Some((Provider::OpenAi, "o3-mini"))),
            ("openrouter/anthropic/claude-opus-4", Some((Provider::OpenRouter, "anthropic/claude-opus-4"))),
            ("bedrock/anthropic.claude-3", Some((Provider::Bedrock, "anthropic.claude-3"))),
            ("omni-1", None),
            ("llama-4", None),
            ("openai/", None),
            ("meta/llama-4", None),
        ] {
            let choice = provider_of(name).map(|provider| ModelChoice { model: model(name), provider });
            assert_eq!(choice.as_ref().map(|choice| (choice.provider, choice.upstream_name())), expected, "{name}");
        }
    }

    #[test]
    fn session_token_uses_the_configured_model() {
        let configured = Some("claude-sonnet-4-5");
        let expected = Ok(("claude-sonnet-4-5".to_owned(), Provider::Anthropic));
        for requested in [None, Some("default"), configured] {
            assert_eq!(choose(configured, false, requested), expected);
        }
        let allowed = vec![model("claude-sonnet-4-5")];
        assert_eq!(choose(configured, false, Some("gpt-5")), Err(ModelRefused::NotAllowed { allowed }));
        assert_eq!(choose(None, false, Some("gpt-5")), Err(ModelRefused::NotAllowed { allowed: vec![] }));
        assert_eq!(choose(None, false, None), Err(ModelRefused::Required));
    }

    #[test]
    fn api_key_names_any_priced_model() {
        assert_eq!(choose(None, true, Some("gpt-5")), Ok(("gpt-5".to_owned(), Provider::OpenAi)));
        for refused in ["gpt-unpriced", "openrouter/x/y", "llama-4", "a b"] {
            let refusal = choose(None, true, Some(refused));
            assert_eq!(refusal, Err(ModelRefused::NotAllowed { allowed: vec![] }), "{refused}");
        }
        assert_eq!(choose(None, true, Some("default")), Err(ModelRefused::Required));
    }
}
