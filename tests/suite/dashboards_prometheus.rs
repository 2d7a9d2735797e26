//! A Prometheus of the test's own: scrapes every second, keeps an hour, and is killed at drop.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use serde_json::Value;
use tempfile::TempDir;

use crate::support::{eventually, free_port};

/// Samples of one series: seconds since 1970, value.
pub type Samples = Vec<(f64, f64)>;

pub struct Prometheus {
    port: u16,
    child: Child,
    dir: TempDir,
    client: reqwest::Client,
}

impl Prometheus {
    /// Scrapes `target` as job `system-bus`, with the rules at these paths.
    pub async fn start(target: &str, rules: &[PathBuf]) -> Self {
        let dir = tempfile::Builder::new().prefix("bus-prom-").tempdir_in("/tmp").unwrap();
        let rules: Vec<String> = rules.iter().map(|path| format!("  - {}", path.display())).collect();
        let config = format!(
            "global: {{scrape_interval: 1s, scrape_timeout: 1s, evaluation_interval: 1s}}\nrule_files:\n{}\n\
             scrape_configs:\n  - job_name: system-bus\n    static_configs: [{{targets: ['{target}']}}]\n",
            rules.join("\n")
        );
        std::fs::write(dir.path().join("prometheus.yml"), config).unwrap();
        let port = free_port();
        let log = std::fs::File::create(dir.path().join("log")).unwrap();
        let child = Command::new("prometheus")
            .arg(format!("--config.file={}", dir.path().join("prometheus.yml").display()))
            .arg(format!("--storage.tsdb.path={}", dir.path().join("data").display()))
            .arg("--storage.tsdb.retention.time=1h")
            .arg(format!("--web.listen-address=127.0.0.1:{port}"))
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()
            .expect("prometheus starts; `make deps` installs it");
        let client = reqwest::Client::builder().no_proxy().timeout(Duration::from_secs(30)).build().unwrap();
        let prometheus = Self { port, child, dir, client };
        eventually(Duration::from_secs(60), || async {
            let answer = prometheus.client.get(prometheus.url("/-/ready")).send().await;
            match answer {
                Ok(answer) if answer.status().is_success() => Ok(()),
                _ => Err(std::fs::read_to_string(prometheus.dir.path().join("log")).unwrap_or_default()),
            }
        })
        .await;
        prometheus
    }

    fn url(&self, path: &str) -> String {
        format!("http://127.0.0.1:{}{path}", self.port)
    }

    async fn ask(&self, path: &str, params: &[(&str, String)]) -> Value {
        let url = reqwest::Url::parse_with_params(&self.url(path), params).unwrap();
        let text = self.client.get(url).send().await.unwrap().text().await.unwrap();
        let answer: Value = serde_json::from_str(&text).unwrap_or_else(|_| panic!("no JSON: {text}"));
        assert_eq!(answer["status"], "success", "{params:?}: {answer}");
        answer["data"]["result"].clone()
    }

    /// The value of a query that has one, now.
    pub async fn value(&self, query: &str) -> Option<f64> {
        self.ask("/api/v1/query", &[("query", query.to_owned())]).await[0]["value"][1].as_str()?.parse().ok()
    }

    /// Every series of a query between two times, a sample a second.
    pub async fn range(&self, query: &str, from: f64, to: f64) -> Vec<(Value, Samples)> {
        let params =
            [("query", query.to_owned()), ("start", from.to_string()), ("end", to.to_string()), ("step", "1".into())];
        let result = self.ask("/api/v1/query_range", &params).await;
        let sample = |pair: &Value| Some((pair[0].as_f64()?, pair[1].as_str()?.parse().ok()?));
        let series = |series: &Value| {
            let samples = series["values"].as_array().unwrap().iter().filter_map(sample).collect();
            (series["metric"].clone(), samples)
        };
        result.as_array().unwrap().iter().map(series).collect()
    }

    /// Waits for the first scrape after this moment; its time.
    pub async fn next_scrape(&self) -> f64 {
        let time = || async { self.value("timestamp(up)").await.unwrap_or_default() };
        let before = time().await;
        eventually(Duration::from_secs(60), || async {
            let now = time().await;
            if now > before { Ok(now) } else { Err(now) }
        })
        .await
    }
}

impl Drop for Prometheus {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A path of the repository.
pub fn repository(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(path)
}
