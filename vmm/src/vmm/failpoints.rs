//! Arms and lists fail points.

use std::ffi::OsString;

use cpr_qmp::command::{InjectArgs, SetFailpointArgs};
use cpr_qmp::info::{AuditValue, FailpointInfo};
use cpr_qmp::message::QmpError;
use serde_json::Value;

use super::answers::{done, generic};
use crate::audit;
use crate::failpoints::{self, FailPoint, Point, Side};
use crate::machine::Machine;

/// Arms the fail points on the command line before it is parsed, because some come earlier. Errors
/// in it are left to the parser.
pub(super) fn arm_early(args: &[OsString]) {
    values(args, "--failpoint").filter_map(|value| value.parse().ok()).for_each(failpoints::arm);
    values(args, "--plant").filter_map(|value| value.parse().ok()).for_each(failpoints::plant);
}

/// Returns the value of each `option`: `--option VALUE` or `--option=VALUE`.
fn values<'a>(args: &'a [OsString], option: &str) -> impl Iterator<Item = &'a str> {
    (0..args.len()).filter_map(move |at| {
        let rest = args[at].to_str()?.strip_prefix(option)?;
        match rest.strip_prefix('=') {
            None if rest.is_empty() => args.get(at + 1)?.to_str(),
            value => value,
        }
    })
}

/// Lists all fail points.
pub(super) fn list() -> Vec<FailpointInfo> {
    let info = |point: &Point| FailpointInfo {
        name: point.name().to_owned(),
        in_new: point.side() == Side::New,
        short_write: point.writes(),
        armed: failpoints::armed(*point).is_some(),
    };
    Point::ALL.iter().map(info).collect()
}

/// Arms or disarms a fail point.
pub(super) fn set(args: &SetFailpointArgs) -> Result<Value, QmpError> {
    failpoints::arm(FailPoint::new(&args.point, &args.action).map_err(generic)?);
    done()
}

/// Injects an event into the guest for a test.
pub(super) fn inject(machine: &Machine, args: &InjectArgs) -> Result<Value, QmpError> {
    let InjectArgs { what, cpu, page } = args;
    let small = |value: &u64, what: &str| {
        u8::try_from(*value).map_err(|_| QmpError::generic(format!("{what} {value} is too large")))
    };
    match what.as_str() {
        "irqfd" => machine.irqfd().fire().map_err(|errno| {
            QmpError::generic(format!("cannot write to the irqfd: {}", std::io::Error::from(errno)))
        })?,
        "start" => {
            machine.start_vcpu_at(small(cpu, "cpu")?, small(page, "page")?).map_err(generic)?;
        }
        other => {
            return Err(QmpError::generic(format!(
                "cannot inject \"{other}\": known are irqfd and start"
            )));
        }
    }
    done()
}

/// Returns KVM's whole view of a stopped machine.
pub(super) fn audit(machine: &Machine) -> Result<Value, QmpError> {
    if machine.run_state().is_running() {
        return Err(QmpError::generic("cannot audit a running guest: stop it first"));
    }
    let values = audit::read(machine, audit::AuditDepth::None)
        .map_err(|reason| QmpError::generic(reason.to_string()))?;
    let value = |(name, value)| AuditValue { name, value };
    let values: Vec<_> = values.into_iter().map(value).collect();
    super::answers::answer(&values)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn options_are_found_in_both_forms() {
        let words = ["--plant", "a", "--plant=b", "--planted=c", "--failpoint", "--plant"];
        let args = words.map(OsString::from);
        assert_eq!(values(&args, "--plant").collect::<Vec<_>>(), ["a", "b"]);
    }
}
