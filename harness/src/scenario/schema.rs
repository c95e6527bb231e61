//! The JSON Schema of scenario files, for editors and for programs that generate scenarios.

use schemars::Schema;
use schemars::generate::SchemaSettings;
use schemars::transform::{Transform, transform_subschemas};
use serde_json::{Value, json};

use super::parse::File;

/// The schema, in draft 2020-12. [`parse`](super::parse::parse) checks what depends on other keys
/// or steps.
pub fn schema() -> Schema {
    let settings = SchemaSettings::draft2020_12().with_transform(AsWritten);
    settings.into_generator().into_root_schema_for::<File>()
}

/// The schema as text, without a line break at its end.
pub fn text() -> String {
    format!("{:#}", schema().as_value())
}

/// Adapts the schema to scenario files: TOML has no null, and the `"${key}"` of a matrix can
/// replace any value.
#[derive(Clone)]
struct AsWritten;

impl Transform for AsWritten {
    fn transform(&mut self, schema: &mut Schema) {
        transform_subschemas(self, schema);
        drop_null(schema);
        allow_placeholder(schema);
    }
}

fn drop_null(schema: &mut Schema) {
    if let Some(Value::Array(kinds)) = schema.get_mut("type") {
        kinds.retain(|kind| kind != "null");
        if let [only] = kinds.as_slice() {
            let only = only.clone();
            schema.insert("type".into(), only);
        }
    }
    if let Some(Value::Array(choices)) = schema.get_mut("anyOf") {
        choices.retain(|choice| choice.get("type").is_none_or(|kind| kind != "null"));
    }
    if schema.get("default").is_some_and(Value::is_null) {
        schema.remove("default");
    }
}

fn allow_placeholder(schema: &mut Schema) {
    let kind = schema.get("type").and_then(Value::as_str);
    let only_some = schema.get("pattern").or(schema.get("enum")).is_some();
    let is_scalar = matches!(kind, Some("integer" | "boolean")) || only_some;
    if let Some(Value::Array(mut choices)) = schema.remove("oneOf") {
        choices.push(placeholder());
        schema.insert("anyOf".into(), Value::Array(choices));
    } else if is_scalar {
        let mut outer = Schema::default();
        for key in ["description", "default"] {
            if let Some(value) = schema.remove(key) {
                outer.insert(key.to_owned(), value);
            }
        }
        let plain = std::mem::replace(schema, outer);
        schema.insert("anyOf".into(), json!([plain, placeholder()]));
    }
}

fn placeholder() -> Value {
    json!({ "type": "string", "pattern": r"\$\{[^}]+\}" })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::scenario::set::EMBEDDED;
    use rstest::rstest;

    fn valid(text: &str) -> Result<(), String> {
        let schema = serde_json::to_value(schema()).unwrap();
        let scenario: toml::Value = toml::from_str(text).map_err(|e| e.to_string())?;
        let scenario = serde_json::to_value(scenario).unwrap();
        jsonschema::validate(&schema, &scenario).map_err(|e| e.to_string())
    }

    #[test]
    fn every_embedded_scenario_matches_the_schema() {
        let schema = serde_json::to_value(schema()).unwrap();
        let validator = jsonschema::validator_for(&schema).unwrap();
        for (name, text) in EMBEDDED {
            let scenario: toml::Value = toml::from_str(text).unwrap();
            let scenario = serde_json::to_value(scenario).unwrap();
            let errors: Vec<String> =
                validator.iter_errors(&scenario).map(|e| e.to_string()).collect();
            assert!(errors.is_empty(), "{name}: {errors:?}");
        }
    }

    #[test]
    fn the_file_in_the_repository_is_current() {
        let there = include_str!("../../../scenarios/scenario.schema.json");
        let how = "cargo run --release -- schema > scenarios/scenario.schema.json";
        assert!(there == format!("{}\n", text()), "write it again: {how}");
    }

    #[rstest]
    #[case::key("summary = ''\nstep = ['boot']")]
    #[case::missing("summary = ''")]
    #[case::step("summary = ''\nsteps = ['boot', 'stopp']")]
    #[case::guest("summary = ''\nvm = { guest = 'windows' }\nsteps = ['boot']")]
    #[case::cpus("summary = ''\nvm = { cpus = 9 }\nsteps = ['boot']")]
    #[case::size("summary = ''\nvm = { memory = '64X' }\nsteps = ['boot']")]
    #[case::command("summary = ''\nsteps = ['boot', { migrate = { command = 'enent' } }]")]
    #[case::nested("summary = ''\nsteps = [{ repeat = { times = 2, steps = ['stopp'] } }]")]
    #[case::amount("summary = ''\nsteps = ['boot', { limit = { as = '++1' } }]")]
    #[case::matrix("summary = ''\nsteps = ['boot']\nmatrix = { a = 1 }")]
    fn rejects_what_the_parser_rejects(#[case] text: &str) {
        assert!(valid(text).is_err(), "{text}");
    }

    #[test]
    fn matrix_placeholder_can_replace_any_value() {
        let text = r#"
            summary = "${s}"
            seed = "${seed}"
            vm = { guest = "${g}", cpus = "${c}", memory = "${m}", pages = "${p}", paused = "${x}" }
            steps = ["boot", { migrate = { command = "${k}", times = "${r}" } }, "${step}"]
            matrix = { c = [1, 2], x = [true], p = ["4k"] }
        "#;
        assert_eq!(valid(text), Ok(()));
    }
}
