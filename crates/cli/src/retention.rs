//! The retention policy as options and configuration have it.

use clap::{Args, ValueEnum};
use keepmark_model::retention::{Keep, Policy, PolicyError, Style, Within};
use keepmark_model::{Failure, FailureClass};
use serde::Deserialize;

use crate::calendar;
use crate::config::Config;

/// Whose rules.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum StyleArgument {
    /// restic's: what any rule keeps is kept
    Restic,
    /// Proxmox's: each rule covers only what is older than what the rules before it cover
    Proxmox,
}

/// What is kept; any of these replaces the configured policy.
#[derive(Debug, Args)]
pub struct KeepArguments {
    /// Keep the last N backups (N, or unlimited)
    #[arg(long, value_name = "N", value_parser = Keep::parse, allow_hyphen_values = true)]
    pub keep_last: Option<Keep>,
    /// Keep the newest backup of each of the last N hours that have one
    #[arg(long, value_name = "N", value_parser = Keep::parse, allow_hyphen_values = true)]
    pub keep_hourly: Option<Keep>,
    /// ... days
    #[arg(long, value_name = "N", value_parser = Keep::parse, allow_hyphen_values = true)]
    pub keep_daily: Option<Keep>,
    /// ... weeks
    #[arg(long, value_name = "N", value_parser = Keep::parse, allow_hyphen_values = true)]
    pub keep_weekly: Option<Keep>,
    /// ... months
    #[arg(long, value_name = "N", value_parser = Keep::parse, allow_hyphen_values = true)]
    pub keep_monthly: Option<Keep>,
    /// ... years
    #[arg(long, value_name = "N", value_parser = Keep::parse, allow_hyphen_values = true)]
    pub keep_yearly: Option<Keep>,
    /// Keep all backups made within this time (1y5m7d2h) before the newest
    #[arg(long, value_name = "TIME", value_parser = Within::parse)]
    pub keep_within: Option<Within>,
    /// Keep the newest backup of each hour within this time before the newest
    #[arg(long, value_name = "TIME", value_parser = Within::parse)]
    pub keep_within_hourly: Option<Within>,
    /// ... of each day
    #[arg(long, value_name = "TIME", value_parser = Within::parse)]
    pub keep_within_daily: Option<Within>,
    /// ... of each week
    #[arg(long, value_name = "TIME", value_parser = Within::parse)]
    pub keep_within_weekly: Option<Within>,
    /// ... of each month
    #[arg(long, value_name = "TIME", value_parser = Within::parse)]
    pub keep_within_monthly: Option<Within>,
    /// ... of each year
    #[arg(long, value_name = "TIME", value_parser = Within::parse)]
    pub keep_within_yearly: Option<Within>,
    /// Keep backups that have all of these tags (may be given several times)
    #[arg(long = "keep-tag", value_name = "TAG[,TAG]")]
    pub keep_tags: Vec<String>,
    /// Whose rules
    #[arg(long, value_enum)]
    pub style: Option<StyleArgument>,
}

/// A number in the configuration: `7` or `"unlimited"`.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(untagged)]
pub enum Count {
    /// A number.
    Number(i64),
    /// A word.
    Word(String),
}

/// `[retention]`: keys as the options of `keepmark forget`, with `_` for `-`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct RetentionConfig {
    pub keep_last: Option<Count>,
    pub keep_hourly: Option<Count>,
    pub keep_daily: Option<Count>,
    pub keep_weekly: Option<Count>,
    pub keep_monthly: Option<Count>,
    pub keep_yearly: Option<Count>,
    pub keep_within: Option<String>,
    pub keep_within_hourly: Option<String>,
    pub keep_within_daily: Option<String>,
    pub keep_within_weekly: Option<String>,
    pub keep_within_monthly: Option<String>,
    pub keep_within_yearly: Option<String>,
    pub keep_tags: Vec<String>,
    pub style: Option<StyleArgument>,
}

#[derive(Debug, thiserror::Error)]
enum RetentionError {
    #[error("the configured retention is wrong")]
    Config(#[source] PolicyError),
    #[error("no rule says which backups stay")]
    Empty,
}

/// The policy that the options say, else the configured one, by the calendar of the scheme's time zone.
///
/// # Errors
/// When the configuration is wrong, or no rule is said anywhere.
pub fn policy(config: &Config, arguments: &KeepArguments) -> Result<Policy, Failure> {
    let said = from_arguments(config, arguments)?;
    let policy = if said.is_empty() { configured(config, arguments.style)? } else { said };
    if policy.is_empty() {
        let empty = Failure::new(FailureClass::Usage, RetentionError::Empty);
        return Err(empty
            .with_hint("say --keep-daily 7 --keep-weekly 5 --keep-monthly 12, or write such rules into [retention] of the configuration"));
    }
    Ok(policy)
}

/// The configured policy, or none.
///
/// # Errors
/// When the configuration is wrong.
pub fn configured(config: &Config, style: Option<StyleArgument>) -> Result<Policy, Failure> {
    let retention = &config.retention;
    let wrong = |error| Failure::new(FailureClass::Usage, RetentionError::Config(error));
    let count = |count: &Option<Count>| match count {
        None => Ok(Keep::default()),
        Some(Count::Number(number)) => Keep::parse(&number.to_string()),
        Some(Count::Word(word)) => Keep::parse(word),
    };
    let within = |text: &Option<String>| text.as_deref().map_or(Ok(Within::default()), Within::parse);
    let mut policy = empty(config, style.or(retention.style))?;
    let RetentionConfig { keep_last, keep_hourly, keep_daily, keep_weekly, keep_monthly, keep_yearly, .. } = retention;
    let counts = [keep_last, keep_hourly, keep_daily, keep_weekly, keep_monthly, keep_yearly];
    let RetentionConfig { keep_within, keep_within_hourly, keep_within_daily, keep_within_weekly, keep_within_monthly, .. } = retention;
    let times =
        [keep_within, keep_within_hourly, keep_within_daily, keep_within_weekly, keep_within_monthly, &retention.keep_within_yearly];
    for (place, (said, time)) in policy.counts.iter_mut().zip(&mut policy.within).zip(counts.into_iter().zip(times)) {
        *place.0 = count(said).map_err(wrong)?;
        *place.1 = within(time).map_err(wrong)?;
    }
    policy.tags = tags(&retention.keep_tags);
    Ok(policy)
}

fn from_arguments(config: &Config, said: &KeepArguments) -> Result<Policy, Failure> {
    let mut policy = empty(config, said.style.or(config.retention.style))?;
    let counts = [said.keep_last, said.keep_hourly, said.keep_daily, said.keep_weekly, said.keep_monthly, said.keep_yearly];
    policy.counts = counts.map(Option::unwrap_or_default);
    let within = [
        said.keep_within,
        said.keep_within_hourly,
        said.keep_within_daily,
        said.keep_within_weekly,
        said.keep_within_monthly,
        said.keep_within_yearly,
    ];
    policy.within = within.map(Option::unwrap_or_default);
    policy.tags = tags(&said.keep_tags);
    Ok(policy)
}

fn empty(config: &Config, style: Option<StyleArgument>) -> Result<Policy, Failure> {
    let style = match style {
        None | Some(StyleArgument::Restic) => Style::Restic,
        Some(StyleArgument::Proxmox) => Style::Proxmox,
    };
    Ok(Policy::new(style, calendar::zone(config.scheme.time_zone.as_deref())?))
}

fn tags(lists: &[String]) -> Vec<Vec<String>> {
    lists.iter().map(|list| list.split(',').map(str::to_owned).collect()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use keepmark_model::retention::Period;

    #[test]
    fn the_configuration_says_what_the_options_would() {
        let text =
            "[retention]\nkeep_daily = 7\nkeep_yearly = 'unlimited'\nkeep_within_weekly = '2m'\nkeep_tags = ['a,b']\nstyle = 'proxmox'";
        let config: Config = toml::from_str(text).unwrap();
        let policy = configured(&config, None).unwrap();
        let of = |period: Period| Period::ALL.iter().position(|other| *other == period).unwrap();
        assert_eq!((policy.counts[of(Period::Daily)], policy.counts[of(Period::Yearly)]), (Keep::Number(7), Keep::All));
        assert_eq!((policy.within[of(Period::Weekly)].months, policy.tags.len(), policy.style), (2, 1, Style::Proxmox));
        assert!(configured(&toml::from_str("[retention]\nkeep_last = -5").unwrap(), None).is_err());
        assert!(toml::from_str::<Config>("[retention]\nkeep_lst = 5").is_err());
    }
}
