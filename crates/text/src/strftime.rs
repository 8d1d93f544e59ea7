//! Python's `strftime` for the few templates that print today's date, in UTC and in English.

use std::fmt::Write;
use std::time::{SystemTime, UNIX_EPOCH};

const WEEKDAYS: [&str; 7] = ["Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday"];
const MONTHS: [&str; 12] = [
    "January",
    "February",
    "March",
    "April",
    "May",
    "June",
    "July",
    "August",
    "September",
    "October",
    "November",
    "December",
];

/// A moment, taken apart.
struct Moment {
    year: i64,
    /// 1 to 12.
    month: usize,
    /// 1 to 31.
    day: i64,
    /// 1 to 366.
    day_of_year: i64,
    /// 0 is Monday.
    weekday: usize,
    hour: i64,
    minute: i64,
    second: i64,
}

/// Formats `now`; an unknown directive is kept as it stands. A `-` after the `%` drops the leading zero.
pub(crate) fn strftime(now: SystemTime, format: &str) -> String {
    let moment = Moment::new(now);
    let mut text = String::new();
    let mut characters = format.chars();
    while let Some(character) = characters.next() {
        if character != '%' {
            text.push(character);
            continue;
        }
        let unpadded = characters.as_str().starts_with('-');
        if unpadded {
            characters.next();
        }
        match characters.next() {
            Some(directive) => moment.write(directive, unpadded, &mut text),
            None => text.push('%'),
        }
    }
    text
}

impl Moment {
    fn new(now: SystemTime) -> Self {
        let seconds = now.duration_since(UNIX_EPOCH).map_or(0, |elapsed| elapsed.as_secs());
        let seconds = i64::try_from(seconds).unwrap_or(0);
        let (days, second_of_day) = (seconds.div_euclid(86_400), seconds.rem_euclid(86_400));
        let mut year = 1970;
        let mut day_of_year = days;
        while length_of(year) <= day_of_year {
            day_of_year -= length_of(year);
            year += 1;
        }
        let february = if length_of(year) == 366 { 29 } else { 28 };
        let lengths = [31, february, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31];
        let (mut month, mut day) = (0, day_of_year);
        while lengths[month] <= day {
            day -= lengths[month];
            month += 1;
        }
        // 1 January 1970 was a Thursday.
        let weekday = usize::try_from((days + 3).rem_euclid(7)).expect("a remainder of 7 is small");
        Self {
            year,
            month: month + 1,
            day: day + 1,
            day_of_year: day_of_year + 1,
            weekday,
            hour: second_of_day / 3600,
            minute: second_of_day / 60 % 60,
            second: second_of_day % 60,
        }
    }

    fn write(&self, directive: char, unpadded: bool, text: &mut String) {
        let month = i64::try_from(self.month).expect("at most 12");
        let hour_of_12 = (self.hour + 11) % 12 + 1;
        let (number, width) = match directive {
            'Y' => (self.year, 4),
            'y' => (self.year % 100, 2),
            'm' => (month, 2),
            'd' => (self.day, 2),
            'H' => (self.hour, 2),
            'I' => (hour_of_12, 2),
            'M' => (self.minute, 2),
            'S' => (self.second, 2),
            'j' => (self.day_of_year, 3),
            _ => return self.write_words(directive, text),
        };
        let width = if unpadded { 0 } else { width };
        write!(text, "{number:0width$}").expect("a string takes everything");
    }

    fn write_words(&self, directive: char, text: &mut String) {
        match directive {
            'B' => text.push_str(MONTHS[self.month - 1]),
            'b' => text.push_str(&MONTHS[self.month - 1][..3]),
            'A' => text.push_str(WEEKDAYS[self.weekday]),
            'a' => text.push_str(&WEEKDAYS[self.weekday][..3]),
            'p' => text.push_str(if self.hour < 12 { "AM" } else { "PM" }),
            'F' => ['Y', '-', 'm', '-', 'd'].iter().for_each(|part| self.write_part(*part, text)),
            'T' => ['H', ':', 'M', ':', 'S'].iter().for_each(|part| self.write_part(*part, text)),
            'Z' => text.push_str("UTC"),
            '%' => text.push('%'),
            other => text.extend(['%', other]),
        }
    }

    fn write_part(&self, part: char, text: &mut String) {
        match part {
            '-' | ':' => text.push(part),
            directive => self.write(directive, false, text),
        }
    }
}

/// A year's days.
fn length_of(year: i64) -> i64 {
    let leap = year % 4 == 0 && (year % 100 != 0 || year % 400 == 0);
    if leap { 366 } else { 365 }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn dates_are_pythons() {
        // Expected texts: datetime.fromtimestamp(seconds, UTC).strftime(format) of Python 3.11.
        for (seconds, format, expected) in [
            (0, "%Y-%m-%d %H:%M:%S %A %j", "1970-01-01 00:00:00 Thursday 001"),
            (1_709_210_096, "%d %b %Y", "29 Feb 2024"),
            (
                1_709_210_096,
                "%A, %B %-d, %Y at %-I:%M %p (%y, day %j) 100%% %",
                "Thursday, February 29, 2024 at 12:34 PM (24, day 060) 100% %",
            ),
            (4_102_444_799, "%F %T %a", "2099-12-31 23:59:59 Thu"),
        ] {
            assert_eq!(strftime(UNIX_EPOCH + Duration::from_secs(seconds), format), expected);
        }
    }
}
