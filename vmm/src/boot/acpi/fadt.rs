//! The FADT: the fixed registers for power button, power-off and reset.

use acpi_tables::fadt::{FADT, FADTBuilder, Flags};
use acpi_tables::gas::{AccessSize, AddressSpace, GAS};

use super::{OEM_ID, OEM_REVISION, OEM_TABLE_ID};
use crate::devices::{i8042, power, rtc};

/// There are ISA devices: the serial port.
const LEGACY_DEVICES: u16 = 1 << 0;
const VGA_NOT_PRESENT: u16 = 1 << 2;
/// Latencies, in microseconds, that mean "not supported".
const NO_C2: u16 = 101;
const NO_C3: u16 = 1001;

/// Returns the table, given the addresses of FACS and DSDT.
pub(super) fn table(facs: u64, dsdt: u64) -> FADT {
    let port = |port: u16, bytes: u8, access| {
        GAS::new(AddressSpace::SystemIo, 8 * bytes, 0, access, port.into())
    };
    let mut fadt = FADTBuilder::new(OEM_ID, OEM_TABLE_ID, OEM_REVISION)
        .firmware_ctrl_32(facs as u32)
        .flag(Flags::Wbinvd)
        .flag(Flags::ProcC1)
        // There is a power button, because its flag is not set, but no sleep button.
        .flag(Flags::SlpButton)
        .flag(Flags::FixRtc)
        .flag(Flags::ResetRegSup);
    fadt.dsdt = (dsdt as u32).into();
    fadt.x_dsdt = dsdt.into();
    fadt.sci_int = (power::IRQ as u16).into();
    fadt.pm1_evt_len = power::EVENTS_LEN;
    fadt.pm1a_evt_blk = u32::from(power::EVENTS).into();
    fadt.x_pm1a_evt_blk = port(power::EVENTS, power::EVENTS_LEN, AccessSize::WordAccess);
    fadt.pm1_cnt_len = power::CONTROL_LEN;
    fadt.pm1a_cnt_blk = u32::from(power::CONTROL).into();
    fadt.x_pm1a_cnt_blk = port(power::CONTROL, power::CONTROL_LEN, AccessSize::WordAccess);
    fadt.p_lvl2_lat = NO_C2.into();
    fadt.p_lvl3_lat = NO_C3.into();
    fadt.century = rtc::CENTURY_REGISTER;
    fadt.iapc_boot_arch = (LEGACY_DEVICES | VGA_NOT_PRESENT).into();
    fadt.reset_reg = port(i8042::COMMAND, 1, AccessSize::ByteAccess);
    fadt.reset_value = i8042::RESET;
    fadt.finalize()
}
