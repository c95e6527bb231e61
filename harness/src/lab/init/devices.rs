//! Huge pages, and devices for pass-through.

use std::fs;
use std::path::Path;
use std::time::Duration;

use super::InitError;
use crate::observe::poll::{self, Deadline};

/// How long the driver may take to bind a device.
const BOUND: Duration = Duration::from_secs(20);

/// Reserves huge pages of 2 MiB.
pub(super) fn reserve_huge_pages(count: u32) -> Result<(), InitError> {
    if count == 0 {
        return Ok(());
    }
    let file = "/sys/kernel/mm/hugepages/hugepages-2048kB/nr_hugepages";
    let what = || format!("reserve {count} huge pages");
    fs::write(file, count.to_string()).map_err(|e| InitError::new(what(), e))?;
    let reserved = fs::read_to_string(file).map_err(|e| InitError::new(what(), e))?;
    match reserved.trim() == count.to_string() {
        true => Ok(()),
        false => {
            let why = format!("only {} fit: give the lab more memory", reserved.trim());
            Err(InitError::new(what(), why))
        }
    }
}

/// Binds the PCI device at `address` to vfio-pci.
pub(super) fn bind(address: &str) -> Result<(), InitError> {
    let device = Path::new("/sys/bus/pci/devices").join(address);
    let step = |what: &str| InitError::step(format!("{what} of PCI device {address}"));
    if device.join("driver").exists() {
        fs::write(device.join("driver/unbind"), address).map_err(step("unbind the driver"))?;
    }
    fs::write(device.join("driver_override"), "vfio-pci").map_err(step("override the driver"))?;
    fs::write("/sys/bus/pci/drivers_probe", address).map_err(step("look for a driver"))?;
    let driver = || fs::read_link(device.join("driver")).ok();
    let bound = || driver().filter(|driver| driver.ends_with("vfio-pci")).map(drop);
    poll::until(Deadline::after(BOUND), bound).ok_or_else(|| {
        let seen = driver().map_or("none".into(), |driver| driver.display().to_string());
        InitError::new(
            format!("bind PCI device {address} to vfio-pci"),
            format!("within {BOUND:?} its driver is {seen}; does the lab have an IOMMU?"),
        )
    })
}
