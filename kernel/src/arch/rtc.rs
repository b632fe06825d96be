//! The battery-backed clock (CMOS), read once at boot.

use super::port;

const SECONDS: u8 = 0;
const MINUTES: u8 = 2;
const HOURS: u8 = 4;
const DAY: u8 = 7;
const MONTH: u8 = 8;
const YEAR: u8 = 9;
const STATUS_A: u8 = 0xa;
const STATUS_B: u8 = 0xb;

const UPDATE_IN_PROGRESS: u8 = 0x80;
const BINARY: u8 = 4;
const HOURS_24: u8 = 2;
const PM: u8 = 0x80;

fn read(register: u8) -> u8 {
    const INDEX: u16 = 0x70;
    const DATA: u16 = 0x71;
    // SAFETY: the boot CPU alone uses the CMOS, at boot; bit 7 of the index would mask NMIs and stays clear.
    unsafe {
        port::write_u8(INDEX, register);
        port::read_u8(DATA)
    }
}

/// Seconds since 1970 by the clock, which runs in UTC; 0 when there is no clock.
pub(super) fn unix_seconds() -> u64 {
    let fields = || [SECONDS, MINUTES, HOURS, DAY, MONTH, YEAR].map(read);
    // An update changes the registers one by one: two equal readings outside of an update are one moment.
    let mut last = [0xff; 6];
    for _ in 0..100_000 {
        if read(STATUS_A) & UPDATE_IN_PROGRESS != 0 {
            continue;
        }
        let now = fields();
        if now == last {
            return decode(now, read(STATUS_B));
        }
        last = now;
    }
    0
}

fn decode(raw: [u8; 6], status: u8) -> u64 {
    let value = |raw: u8| if status & BINARY != 0 { raw } else { (raw >> 4) * 10 + (raw & 15) } as u64;
    let [seconds, minutes, hours, day, month, year] = raw;
    let mut hour = value(hours & !PM);
    if status & HOURS_24 == 0 {
        hour = hour % 12 + if hours & PM != 0 { 12 } else { 0 };
    }
    let (month, day) = (value(month), value(day));
    if !(1..=12).contains(&month) || day == 0 {
        return 0;
    }
    days(2000 + value(year), month, day) * 86_400 + hour * 3600 + value(minutes) * 60 + value(seconds)
}

/// Days from 1970-01-01 to a date of the Gregorian calendar.
fn days(year: u64, month: u64, day: u64) -> u64 {
    // Years that begin in March have the leap day last.
    let (year, month) = if month > 2 { (year, month - 3) } else { (year - 1, month + 9) };
    let since_zero = year * 365 + year / 4 - year / 100 + year / 400 + (month * 153 + 2) / 5 + day - 1;
    since_zero - 719_468
}
