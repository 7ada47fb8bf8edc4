//! The scheme as the configuration has it, with the system's time zone where it names none.

use jiff::tz::TimeZone;
use keepmark_model::scheme::{Rhythm, RhythmError, Scheme};
use keepmark_model::{Failure, FailureClass};

use crate::config::SchemeConfig;

/// What in the configuration's place of a rhythm means never.
const OFF: &str = "off";

#[derive(Debug, thiserror::Error)]
enum CalendarError {
    #[error("the scheme's rhythm of {kind} backups is wrong")]
    Rhythm { kind: &'static str, source: RhythmError },
    #[error("{name:?} is no time zone that this system knows")]
    Zone { name: String, source: jiff::Error },
}

/// The configured scheme; grandfather, father, son where nothing else is said.
///
/// # Errors
/// When a rhythm or the time zone is none.
pub fn scheme(config: &SchemeConfig) -> Result<Scheme, Failure> {
    let zone = zone(config.time_zone.as_deref())?;
    let wrong = |kind| move |source| usage(CalendarError::Rhythm { kind, source });
    let default = Scheme::gfs(zone.clone()).map_err(wrong("all"))?;
    let rhythm = |kind, text: &Option<String>, default| match text.as_deref() {
        None => Ok(default),
        Some(OFF) => Ok(None),
        Some(text) => Rhythm::parse(text).map(Some).map_err(wrong(kind)),
    };
    Ok(Scheme {
        full: rhythm("full", &config.full, default.full)?,
        differential: rhythm("differential", &config.differential, default.differential)?,
        incremental: rhythm("incremental", &config.incremental, default.incremental)?,
        zone,
    })
}

/// A time zone by its name, or the system's.
///
/// # Errors
/// When there is none of that name.
pub fn zone(name: Option<&str>) -> Result<TimeZone, Failure> {
    let Some(name) = name else { return Ok(TimeZone::system()) };
    TimeZone::get(name).map_err(|source| usage(CalendarError::Zone { name: name.to_owned(), source }))
}

fn usage(error: CalendarError) -> Failure {
    Failure::new(FailureClass::Usage, error)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(text: &str) -> SchemeConfig {
        toml::from_str(text).unwrap()
    }

    #[test]
    fn each_rhythm_can_be_changed_or_switched_off() {
        let scheme = scheme(&config("full = 'off'\nincremental = 'daily'\ntime_zone = 'Europe/Berlin'")).unwrap();
        let texts = [&scheme.full, &scheme.differential, &scheme.incremental].map(|rhythm| rhythm.as_ref().map(ToString::to_string));
        assert_eq!(texts, [None, Some("weekly".to_owned()), Some("daily".to_owned())]);
        assert_eq!(scheme.zone.iana_name(), Some("Europe/Berlin"));
    }

    #[test]
    fn what_is_wrong_is_named() {
        let told = |text| {
            let failure = scheme(&config(text)).unwrap_err();
            assert_eq!(failure.class(), FailureClass::Usage);
            crate::exit::told(&failure)
        };
        let text = told("differential = 'every now and then'");
        assert!(text.contains("rhythm of differential backups") && text.contains("every now and then"), "{text}");
        assert!(told("time_zone = 'Atlantis'").contains("Atlantis"));
    }
}
