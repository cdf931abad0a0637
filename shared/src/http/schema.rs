//! `OpenAPI` schemas of the API's value types, as their parsers accept them and responses show
//! them. Rules that a schema cannot express (a name must not be all blank, a URL must lead to a
//! public host) are in the description.

use std::borrow::Cow;

use utoipa::{
    PartialSchema, ToSchema,
    openapi::{ArrayBuilder, KnownFormat, ObjectBuilder, RefOr, Schema, SchemaFormat, Type, schema::SchemaType},
};

use super::{Days, Limit, Revealed, UncheckedText, Verbatim};
use crate::domain::{
    AlertPercents, AllowedCidrs, ArtifactUrl, Budget, Cap, CommitSha, EndpointUrl, EventType, EventTypes, Grace, Id,
    ImageRef, MessageId, Metadata, ModelId, Month, Name, OutboundUrl, Plan, Prefix, Scope, ScopeSet, SessionId, Slug,
    Timestamp, TurnId, UserId, Value, Version,
};

/// 2^53 - 1, the largest integer that JavaScript represents exactly.
const SAFE: u64 = 9_007_199_254_740_991;

fn text(description: &str) -> ObjectBuilder {
    ObjectBuilder::new().schema_type(Type::String).description(Some(description))
}

fn sized_text(min: usize, max: usize, description: &str) -> ObjectBuilder {
    text(description).min_length(Some(min)).max_length(Some(max))
}

fn integer(min: u64, max: u64, description: &str) -> ObjectBuilder {
    ObjectBuilder::new()
        .schema_type(Type::Integer)
        .format(Some(SchemaFormat::KnownFormat(KnownFormat::Int64)))
        .minimum(Some(min))
        .maximum(Some(max))
        .description(Some(description))
}

fn url(description: &str) -> ObjectBuilder {
    sized_text(1, 2_048, description).format(Some(SchemaFormat::Custom("uri".to_owned())))
}

fn list(items: ObjectBuilder, min: usize, max: usize, description: &str) -> ArrayBuilder {
    ArrayBuilder::new().items(items).min_items(Some(min)).max_items(Some(max)).description(Some(description))
}

fn reference<T: ToSchema>() -> RefOr<Schema> {
    utoipa::openapi::Ref::from_schema_name(T::name()).into()
}

macro_rules! schemas {
    ($($type:ty $(as $name:literal)? => $schema:expr;)*) => {$(
        impl PartialSchema for $type {
            fn schema() -> RefOr<Schema> {
                $schema.build().into()
            }
        }
        impl ToSchema for $type {
            $(fn name() -> Cow<'static, str> {
                $name.into()
            })?
        }
    )*};
}

schemas! {
    Id => integer(1, SAFE, "An id, unique per kind across all organizations.");
    Version => integer(1, SAFE, "Number of a release in its project: 1, 2, …, without gaps.");
    Cap => integer(0, SAFE, "A cap per UTC month; 0 allows no spending.");
    Grace => integer(0, 2_592_000, "Seconds that the old key or secret stays valid; one day by default.");
    Limit => integer(1, 100, "Maximum items per page; 50 by default.");
    Days => integer(1, 3_650, "A number of days.");
    Timestamp => text("A time. Requests may use any RFC 3339 precision and offset; responses are in UTC with milliseconds.")
        .format(Some(SchemaFormat::KnownFormat(KnownFormat::DateTime)));
    Month => text("A calendar month in UTC.").pattern(Some("^(19[7-9][0-9]|[2-8][0-9]{3}|9[0-8][0-9]{2}|99[0-8][0-9]|999[0-8])-(0[1-9]|1[0-2])$"));
    SessionId => text("The id of a session: `sess_` and 32 hexadecimal digits.").pattern(Some("^sess_[0-9a-f]{32}$"));
    TurnId => text("The id of a turn: `turn_` and 32 hexadecimal digits.").pattern(Some("^turn_[0-9a-f]{32}$"));
    MessageId => text("The id of a message: `msg_` and 32 hexadecimal digits.").pattern(Some("^msg_[0-9a-f]{32}$"));
    Name => sized_text(1, 100, "1 to 100 characters, not all blank, without control or invisible characters.");
    Plan => sized_text(1, 100, "The organization's plan, as the operator names it.");
    Slug => text("A name for use in paths.").pattern(Some("^[a-z0-9-]{1,63}$"));
    UserId => sized_text(1, 255, "The end user of the token, as the caller names them: 1 to 255 bytes, not all blank, without control characters.");
    ModelId => sized_text(1, 128, "The provider's name for a model, without blanks, control or invisible characters.");
    Prefix => text("The first 14 characters of an API key. Not secret, and not unique.").pattern(Some("^kt_live_[0-9A-Za-z]{6}$"));
    CommitSha => text("A commit in hexadecimal digits; responses show them in lower case.").pattern(Some("^[0-9a-fA-F]{7,64}$"));
    ImageRef => sized_text(1, 512, "A container image, such as `registry.example.com/app:1.4`.");
    EndpointUrl => url("`https`, a public DNS name, the default port; no credentials, query or fragment.");
    ArtifactUrl => url("Location of a release's code: `https`, a public DNS name, the default port; no credentials, query or fragment.");
    OutboundUrl as "WebhookUrl" => url("URL that receives deliveries. Events, and responses to keys without `admin`, show `?redacted` instead of the query.");
    Revealed => text("A secret, shown only in this response.");
    Verbatim => ObjectBuilder::new().schema_type(SchemaType::AnyValue);
    UncheckedText as "Received" => text("Write-only: never returned.").write_only(true);
    Metadata => ObjectBuilder::new()
        .schema_type(Type::Object)
        .description(Some("The caller's metadata: at most 50 pairs, keys of 1 to 40 characters, values of at most 500."))
        .property_names(Some(sized_text(1, 40, "A key.").build()))
        .additional_properties(Some(Schema::from(sized_text(0, 500, "A value.").build())))
        .max_properties(Some(50));
    AllowedCidrs => list(
        text("An IPv4 or IPv6 range such as `203.0.113.0/24` or `2001:db8::/32`, or one address."),
        0,
        20,
        "Addresses that may use the key. An empty list allows every address.",
    );
    AlertPercents => list(
        integer(1, 100, "A whole percent of a cap.").format(None),
        0,
        10,
        "Percents of each cap at which `budget.threshold` is sent; responses show them ascending and without duplicates.",
    );
    EventType => text("The type of the event.").enum_values(Some(EventType::ALL.map(EventType::as_str)));
    EventTypes => list(
        text("A type of event, or `*` for all of them.")
            .enum_values(Some(EventType::ALL.map(EventType::as_str).into_iter().chain(["*"]))),
        1,
        50,
        "Event types that the endpoint receives.",
    );
    Value => ObjectBuilder::new()
        .schema_type(SchemaType::AnyValue)
        .description(Some("A field's value in the form that the resource shows."));
}

/// The input form, where absent caps mean no cap. Responses show a
/// [`BudgetResource`](super::BudgetResource).
impl PartialSchema for Budget {
    fn schema() -> RefOr<Schema> {
        let or_null = |schema: RefOr<Schema>| {
            utoipa::openapi::OneOfBuilder::new().item(ObjectBuilder::new().schema_type(Type::Null)).item(schema)
        };
        let mut budget = ObjectBuilder::new()
            .schema_type(Type::Object)
            .description(Some("Caps per UTC month. An absent or `null` cap means no cap."))
            .additional_properties(Some(utoipa::openapi::schema::AdditionalProperties::<Schema>::FreeForm(false)));
        for cap in ["input_tokens", "output_tokens", "total_tokens", "cost_cents"] {
            budget = budget.property(cap, or_null(reference::<Cap>()));
        }
        budget.property("alert_percents", or_null(reference::<AlertPercents>())).build().into()
    }
}

impl ToSchema for Budget {
    fn name() -> Cow<'static, str> {
        "BudgetInput".into()
    }

    fn schemas(schemas: &mut Vec<(String, RefOr<Schema>)>) {
        schemas.push((Cap::name().into(), Cap::schema()));
        schemas.push((AlertPercents::name().into(), AlertPercents::schema()));
    }
}

impl PartialSchema for ScopeSet {
    fn schema() -> RefOr<Schema> {
        let description = "Rights of the key. Scopes are independent: no scope implies another. A key without scopes validates at data planes and \
             can call only the whoami routes here: give such keys to customers.";
        ArrayBuilder::new().items(reference::<Scope>()).description(Some(description)).build().into()
    }
}

impl ToSchema for ScopeSet {
    fn schemas(schemas: &mut Vec<(String, RefOr<Schema>)>) {
        schemas.push((Scope::name().into(), Scope::schema()));
    }
}
