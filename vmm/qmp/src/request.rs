//! The envelope of a command: `execute`, `arguments`, `id`.

use serde_json::{Map, Value};

use crate::command::Command;
use crate::message::QmpError;

/// A well-formed request, whose command may not exist.
#[derive(Clone, Debug, PartialEq)]
pub struct Request {
    /// The command's name.
    pub name: String,
    /// Its arguments; empty if there are none.
    pub arguments: Map<String, Value>,
    /// Any value, to be echoed in the response.
    pub id: Option<Value>,
}

/// A malformed request, with its `id`.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
#[error("{error}")]
pub struct RequestError {
    /// What is wrong with it.
    pub error: QmpError,
    /// The `id` to echo.
    pub id: Option<Value>,
}

impl Request {
    /// Parses a decoded message.
    pub fn from_value(message: Value) -> Result<Self, RequestError> {
        let Value::Object(mut members) = message else {
            let error = QmpError::generic("QMP input must be a JSON object");
            return Err(RequestError { error, id: None });
        };
        let id = members.shift_remove("id");
        match Self::name_and_arguments(members) {
            Ok((name, arguments)) => Ok(Self { name, arguments, id }),
            Err(error) => Err(RequestError { error, id }),
        }
    }

    fn name_and_arguments(
        members: Map<String, Value>,
    ) -> Result<(String, Map<String, Value>), QmpError> {
        let (mut name, mut arguments) = (None, Map::new());
        for (key, value) in members {
            match (key.as_str(), value) {
                ("execute", Value::String(text)) => name = Some(text),
                ("execute", _) => {
                    return Err(QmpError::generic("QMP input member 'execute' must be a string"));
                }
                ("arguments", Value::Object(map)) => arguments = map,
                ("arguments", _) => {
                    return Err(QmpError::generic(
                        "QMP input member 'arguments' must be an object",
                    ));
                }
                // Including `exec-oob`: it exists only for clients that enabled `oob`, which is not
                // offered.
                _ => {
                    return Err(QmpError::generic(format!(
                        "QMP input member '{key}' is unexpected"
                    )));
                }
            }
        }
        let name = name.ok_or_else(|| QmpError::generic("QMP input lacks member 'execute'"))?;
        Ok((name, arguments))
    }

    /// Returns the typed command, if it exists and its arguments are valid.
    pub fn command(self) -> Result<Command, QmpError> {
        Command::from_parts(&self.name, self.arguments)
    }
}

#[cfg(test)]
mod tests {
    use rstest::rstest;
    use serde_json::json;

    use super::*;

    #[rstest]
    #[case(json!(42), "QMP input must be a JSON object", None)]
    #[case(json!([{"execute": "stop"}]), "QMP input must be a JSON object", None)]
    #[case(json!({}), "QMP input lacks member 'execute'", None)]
    #[case(json!({"id": 7}), "QMP input lacks member 'execute'", Some(json!(7)))]
    #[case(json!({"execute": 1}), "QMP input member 'execute' must be a string", None)]
    #[case(json!({"execute": "stop", "arguments": []}),
           "QMP input member 'arguments' must be an object", None)]
    #[case(json!({"execute": "stop", "x": 1, "id": [1]}),
           "QMP input member 'x' is unexpected", Some(json!([1])))]
    #[case(json!({"exec-oob": "stop"}), "QMP input member 'exec-oob' is unexpected", None)]
    fn rejects_malformed_requests(
        #[case] message: Value,
        #[case] desc: &str,
        #[case] id: Option<Value>,
    ) {
        let refused = Request::from_value(message).unwrap_err();
        assert_eq!(refused, RequestError { error: QmpError::generic(desc), id });
    }

    #[test]
    fn id_may_be_null() {
        let request = Request::from_value(json!({"execute": "stop", "id": null})).unwrap();
        assert_eq!(request.id, Some(Value::Null));
        assert_eq!(request.command(), Ok(Command::Stop));
    }
}
