//! Parts of the schema that the types of scenarios name.

use schemars::{JsonSchema, Schema};
use serde_json::json;

/// A value of `[matrix]`.
#[derive(JsonSchema)]
#[serde(untagged)]
#[allow(dead_code, reason = "only its schema is used")]
pub(super) enum Scalar {
    /// Text.
    Text(String),
    /// A number.
    Number(i64),
    /// True or false.
    Truth(bool),
}

/// Restricts the schema of a field of [`Vm`](super::Vm) to the names of the guests.
pub(super) fn guests(schema: &mut Schema) {
    schema.insert("enum".into(), json!(guest_images::names()));
}
