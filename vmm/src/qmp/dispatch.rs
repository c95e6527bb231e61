//! Turns a decoded message into an answer or into a command for the VMM.

use cpr_qmp::codec::DecodeError;
use cpr_qmp::command::{Command, QmpCapabilitiesArgs, QmpCapability};
use cpr_qmp::info::{CommandInfo, Empty};
use cpr_qmp::message::{
    ErrorClass, Greeting, GreetingBody, QmpError, Response, VersionInfo, VersionTriple,
};
use cpr_qmp::request::{Request, RequestError};
use cpr_qmp::schema::{COMMANDS, CommandSpec};
use serde::Serialize;
use serde_json::{Map, Value};

use super::schema::schema;

/// The outcome of dispatching a message.
pub(super) enum Outcome {
    /// The server answers it.
    Answer(Response),
    /// The VMM has to carry out the command.
    Forward { command: Command, id: Option<Value> },
}

/// Returns the answer to `query-version`.
pub fn version() -> VersionInfo {
    let number = |text: &str| text.parse().unwrap_or(0);
    VersionInfo {
        qemu: VersionTriple {
            major: number(env!("CARGO_PKG_VERSION_MAJOR")),
            minor: number(env!("CARGO_PKG_VERSION_MINOR")),
            micro: number(env!("CARGO_PKG_VERSION_PATCH")),
        },
        package: env!("CARGO_PKG_NAME").to_owned(),
    }
}

pub(super) fn greeting() -> Greeting {
    Greeting { qmp: GreetingBody { version: version(), capabilities: Vec::new() } }
}

/// Wraps `result` in a response.
pub(super) fn response(result: Result<Value, QmpError>, id: Option<Value>) -> Response {
    #[cfg(feature = "failpoints")]
    let result = result.map(crate::failpoints::seam::answer);
    match result {
        Ok(value) => Response::Success { value, id },
        Err(error) => Response::Failure { error, id },
    }
}

/// The result of a command in the server.
enum Step {
    Done(Value),
    Left(Command),
}

pub(super) fn dispatch(message: Result<Value, DecodeError>, negotiated: &mut bool) -> Outcome {
    let request = message
        .map_err(|error| RequestError { error: QmpError::generic(error.to_string()), id: None })
        .and_then(Request::from_value);
    let (step, id) = match request {
        Ok(Request { name, arguments, id }) => (carry_out(&name, arguments, negotiated), id),
        Err(RequestError { error, id }) => (Err(error), id),
    };
    match step {
        Ok(Step::Done(value)) => Outcome::Answer(response(Ok(value), id)),
        Ok(Step::Left(command)) => Outcome::Forward { command, id },
        Err(error) => Outcome::Answer(response(Err(error), id)),
    }
}

/// Returns whether a message is a valid `migrate_cancel`.
pub(super) fn is_cancellation(message: Value) -> bool {
    let command = Request::from_value(message).map_err(|error| error.error);
    let command = command.and_then(|request| Command::from_parts(&request.name, request.arguments));
    matches!(command, Ok(Command::MigrateCancel))
}

/// Carries out the command if the server can.
fn carry_out(
    name: &str,
    arguments: Map<String, Value>,
    negotiated: &mut bool,
) -> Result<Step, QmpError> {
    if !*negotiated && name != "qmp_capabilities" {
        return Err(out_of_order("Expecting capabilities negotiation with 'qmp_capabilities'"));
    }
    Ok(Step::Done(match Command::from_parts(name, arguments)? {
        Command::QmpCapabilities(args) => {
            negotiate(&args, *negotiated)?;
            *negotiated = true;
            to_value(&Empty {})?
        }
        Command::QueryVersion => to_value(&version())?,
        Command::QueryCommands => {
            let info = |spec: &CommandSpec| CommandInfo { name: spec.name.to_owned() };
            to_value(&COMMANDS.iter().map(info).collect::<Vec<_>>())?
        }
        Command::QueryQmpSchema => schema(),
        left => return Ok(Step::Left(left)),
    }))
}

fn negotiate(args: &QmpCapabilitiesArgs, negotiated: bool) -> Result<(), QmpError> {
    if negotiated {
        return Err(out_of_order("Capabilities negotiation is already complete, command ignored"));
    }
    // The server offers none.
    let wanted = args.enable.iter().flatten().map(|capability| match capability {
        QmpCapability::Oob => "oob",
    });
    let wanted = wanted.collect::<Vec<_>>().join(", ");
    if wanted.is_empty() {
        Ok(())
    } else {
        Err(QmpError::generic(format!("Capability {wanted} not available")))
    }
}

fn out_of_order(desc: &str) -> QmpError {
    QmpError { class: ErrorClass::CommandNotFound, desc: desc.to_owned() }
}

fn to_value(of: &impl Serialize) -> Result<Value, QmpError> {
    serde_json::to_value(of)
        .map_err(|error| QmpError::generic(format!("cannot encode the answer: {error}")))
}
