//! How fail points are armed and listed.

use std::ffi::OsString;

use cpr_qmp::command::{InjectArgs, SetFailpointArgs};
use cpr_qmp::info::{AuditValue, FailpointInfo};
use cpr_qmp::message::QmpError;
use serde_json::Value;

use super::commands::{done, generic};
use crate::audit;
use crate::failpoints::{self, FailPoint, Point, Side};
use crate::machine::Machine;

/// Arms what the command line says, before it is parsed: some points come earlier. What is wrong
/// with it is told by the parser.
pub(super) fn arm_early(args: &[OsString]) {
    values(args, "--failpoint").filter_map(|value| value.parse().ok()).for_each(failpoints::arm);
    values(args, "--plant").filter_map(|value| value.parse().ok()).for_each(failpoints::plant);
}

/// What `option` is set to, each time: `--option VALUE` or `--option=VALUE`.
fn values<'a>(args: &'a [OsString], option: &str) -> impl Iterator<Item = &'a str> {
    (0..args.len()).filter_map(move |at| {
        let rest = args[at].to_str()?.strip_prefix(option)?;
        match rest.strip_prefix('=') {
            None if rest.is_empty() => args.get(at + 1)?.to_str(),
            value => value,
        }
    })
}

/// All points.
pub(super) fn list() -> Vec<FailpointInfo> {
    let info = |point: &Point| FailpointInfo {
        name: point.name().to_owned(),
        in_new: point.side() == Side::New,
        short_write: point.writes(),
        armed: failpoints::armed(*point).is_some(),
    };
    Point::ALL.iter().map(info).collect()
}

/// Arms or disarms one.
pub(super) fn set(args: &SetFailpointArgs) -> Result<Value, QmpError> {
    failpoints::arm(FailPoint::new(&args.point, &args.action).map_err(generic)?);
    done()
}

/// Sends the guest what a test orders.
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
                "there is no \"{other}\" to inject; there are irqfd, start"
            )));
        }
    }
    done()
}

/// Everything that KVM tells of a machine that stands still.
pub(super) fn audit(machine: &Machine) -> Result<Value, QmpError> {
    if machine.run_state().is_running() {
        return Err(QmpError::generic("the guest runs: stop it first"));
    }
    let values = audit::read(machine, audit::Haste::None)
        .map_err(|reason| QmpError::generic(reason.to_string()))?;
    let value = |(name, value)| AuditValue { name, value };
    let values: Vec<_> = values.into_iter().map(value).collect();
    super::commands::answer(&values)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_option_is_found_in_both_its_forms() {
        let words = ["--plant", "a", "--plant=b", "--planted=c", "--failpoint", "--plant"];
        let args = words.map(OsString::from);
        assert_eq!(values(&args, "--plant").collect::<Vec<_>>(), ["a", "b"]);
    }
}
