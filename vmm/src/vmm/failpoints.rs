//! How fail points are armed and listed.

use std::ffi::OsString;

use cpr_qmp::command::{InjectArgs, SetFailpointArgs};
use cpr_qmp::info::FailpointInfo;
use cpr_qmp::message::QmpError;
use serde_json::Value;

use super::commands::{done, generic};
use crate::failpoints::{self, FailPoint, Point, Side};
use crate::machine::Machine;

/// Arms what the command line says, before it is parsed: some points come earlier. What is wrong
/// with it is told by the parser.
pub(super) fn arm_early(args: &[OsString]) {
    let points = values(args, "--failpoint").filter_map(|value| value.parse::<FailPoint>().ok());
    points.for_each(failpoints::arm);
    values(args, "--plant").filter_map(|value| value.parse().ok()).for_each(failpoints::plant);
}

/// The values of an option, behind it or behind its `=`.
fn values<'a>(args: &'a [OsString], option: &'a str) -> impl Iterator<Item = &'a str> {
    let value =
        move |(index, word): (usize, &'a OsString)| match word.to_str()?.strip_prefix(option)? {
            "" => args.get(index + 1)?.to_str(),
            rest => rest.strip_prefix('='),
        };
    args.iter().enumerate().filter_map(value)
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_value_stands_behind_its_option_or_behind_an_equals_sign() {
        let args = ["--plant", "a", "--plant=b", "--planted=c", "--log", "--plant", "d", "--plant"];
        let args = args.map(OsString::from);
        assert_eq!(values(&args, "--plant").collect::<Vec<_>>(), ["a", "b", "d"]);
    }
}
