//! How fail points are armed and listed.

use std::ffi::OsString;

use cpr_qmp::command::SetFailpointArgs;
use cpr_qmp::info::FailpointInfo;
use cpr_qmp::message::QmpError;
use serde_json::Value;

use super::commands::{done, generic};
use crate::failpoints::{self, FailPoint, Point, Side};

/// Arms what the command line says, before it is parsed: some points come earlier. What is wrong
/// with it is told by the parser.
pub(super) fn arm_early(args: &[OsString]) {
    let options = args.windows(2).filter(|pair| pair[0] == "--failpoint");
    let points = options.filter_map(|pair| pair[1].to_str()?.parse::<FailPoint>().ok());
    points.for_each(failpoints::arm);
    let options = args.windows(2).filter(|pair| pair[0] == "--plant");
    let bugs = options.filter_map(|pair| pair[1].to_str()?.parse().ok());
    bugs.for_each(failpoints::plant);
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
