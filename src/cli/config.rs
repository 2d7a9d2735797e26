//! `joelclaw config`: every value in force and what chose it; `--docs`: the same declarations as a table.

use serde_json::{Map, Value, json};

use super::Context;
use super::output::{Failure, NextAction, Report};
use super::render::Human;
use crate::config::{Declared, settings};

/// Show every setting in force and what chose it
#[derive(Debug, Clone, clap::Args)]
#[command(
    after_help = "Examples:\n  joelclaw config\n  joelclaw config --json | jq .result.redis\n  joelclaw config --docs > docs/configuration.md"
)]
pub struct Args {
    /// Print the table of all settings as markdown instead
    #[arg(long)]
    docs: bool,
}

/// Runs the command.
pub fn run(args: &Args, context: &Context) -> Result<Report, Failure> {
    if args.docs {
        let text = docs();
        return Ok(Report::raw(json!({ "markdown": text }), text));
    }
    let config = &context.config;
    let settings: Map<String, Value> = config
        .effective
        .iter()
        .map(|setting| {
            let declared = &setting.declared;
            let value = json!({
                "value": setting.shown,
                "origin": setting.origin,
                "default": (!declared.default.is_empty()).then_some(declared.default),
                "part": declared.part,
                "secret": declared.is_secret,
            });
            (declared.key.to_owned(), value)
        })
        .collect();
    let env_file = json!({ "path": config.env_file, "exists": config.env_file.exists() });
    let result = json!({
        "redis": context.redis_origin(),
        "envFile": env_file,
        "registry": config.system.registry,
        "managedRedis": { "dir": config.managed.dir, "socket": config.managed.socket },
        "settings": settings,
        "warnings": config.warnings,
    });

    let mut human = Human::new().pairs([
        ("redis", format!("{} ({})", config.redis.display, config.redis.origin.as_str())),
        ("env file", config.env_file.display().to_string()),
        ("registry", config.system.registry.display().to_string()),
        ("data", config.system.data_dir.display().to_string()),
    ]);
    let rows = config.effective.iter().map(|setting| {
        let value = setting.shown.clone().unwrap_or_else(|| "-".into());
        vec![setting.declared.key.to_owned(), value, setting.origin.as_str().to_owned()]
    });
    human = human.title("Settings").table(&["KEY", "VALUE", "ORIGIN"], rows);
    if !config.warnings.is_empty() {
        let rows = config.warnings.iter().map(|warning| vec![warning.code.to_owned(), warning.message.clone()]);
        human = human.title("Warnings").table(&["CODE", "WHAT"], rows);
    }
    let mut report = Report::new(result, human);
    if let Some(warning) = config.warnings.first() {
        report = report.next(NextAction::new(format!("explain {}", warning.code), "What the first warning means"));
    }
    Ok(report.next(NextAction::new("config --docs", "What every setting means")))
}

/// `docs/configuration.md`.
fn docs() -> String {
    let mut out = String::from(
        "# Configuration\n\nPrinted by `joelclaw config --docs`; the declarations are in `src/config/settings.rs`.\n\n\
         A value comes from a flag, else the env file (`~/.config/system-bus.env`, or `--env-file`, or \
         `SYSTEM_BUS_ENV_FILE`), else the environment, else its default. Settings marked ¹ take the environment before \
         the file. A value that is not accepted is replaced by the default, with a warning. `joelclaw config` shows \
         every value in force and what chose it.\n\n\
         Redis is the first of: `--redis-url`, `REDIS_URL` in the env file, `REDIS_URL` in the environment, the socket \
         of the managed instance, `REDIS_HOST`/`REDIS_PORT` (with a warning), `redis://localhost:6379`.\n",
    );
    let mut part = "";
    for setting in settings::declared() {
        if setting.part != part {
            part = setting.part;
            out.push_str(&format!("\n## {part}\n\n| variable | default | accepts | meaning |\n|---|---|---|---|\n"));
        }
        out.push_str(&row(&setting));
    }
    out.push_str("\n## per provider\n\n`<PROVIDER>` is a provider's id in capitals, with `_` for `-`.\n\n| variable | meaning |\n|---|---|\n");
    for (variable, meaning) in settings::PATTERNS {
        out.push_str(&format!("| `{variable}` | {meaning} |\n"));
    }
    out
}

fn row(setting: &Declared) -> String {
    let default = if setting.default.is_empty() { "unset".into() } else { format!("`{}`", setting.default) };
    let mark = match setting.order {
        crate::config::declare::Order::EnvironmentFirst => "¹",
        crate::config::declare::Order::FileFirst => "",
    };
    format!("| `{}`{mark} | {default} | {} | {} |\n", setting.key, setting.expects, setting.doc.replace('|', "\\|"))
}

#[cfg(test)]
mod tests {
    #[test]
    fn the_docs_have_a_row_for_each_setting() {
        let docs = super::docs();
        for setting in crate::config::settings::declared() {
            assert!(docs.contains(&format!("| `{}`", setting.key)), "{}", setting.key);
        }
        assert!(docs.contains("| `QUEUE_DRAINER_CONCURRENCY` | `16` | integer 1 to 4096 |"), "{docs}");
    }
}
