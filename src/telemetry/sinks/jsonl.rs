//! The archive: one JSON document a line, `events-YYYYMMDD-NN.jsonl`, a new file every day and every so many bytes.
//!
//! A step is appended and synced before the cursor moves. A start finds the last whole line, cuts off what a crash left
//! behind it, and passes over events up to that one, so a restart writes nothing twice. Files that are full are packed
//! with gzip; old ones are removed, by age and by the size of all.
//!
//! A directory belongs to one data set of Redis, whose id is in `.instance`. Another data set begins a file of its own,
//! for its ids say nothing about those that are there.

use std::fs::{File, OpenOptions};
use std::io::{self, BufRead, BufReader, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use chrono::{DateTime, Utc};
use flate2::Compression;
use flate2::read::GzDecoder;
use flate2::write::GzEncoder;

use super::super::event::{Event, EventId};
use super::{Batches, Failed, Sink};

/// Where, and how much.
#[derive(Debug, Clone)]
pub struct Settings {
    /// The directory.
    pub directory: PathBuf,
    /// Bytes of one file.
    pub file_bytes: u64,
    /// Bytes of all files.
    pub total_bytes: u64,
    /// How long files stay.
    pub keep: Duration,
    /// The data set of Redis.
    pub instance: String,
}

/// The sink.
#[derive(Debug)]
pub struct Jsonl {
    settings: Settings,
    open: Option<Open>,
    /// A start has looked at what is there.
    last: Option<EventId>,
    is_known: bool,
}

#[derive(Debug)]
struct Open {
    file: File,
    path: PathBuf,
    day: String,
    number: u32,
    bytes: u64,
}

impl Jsonl {
    /// A sink over a directory, which is made at the first write.
    #[must_use]
    pub const fn new(settings: Settings) -> Self {
        Self { settings, open: None, last: None, is_known: false }
    }
}

impl Sink for Jsonl {
    const NAME: &'static str = "jsonl";
    const IS_REQUIRED: bool = true;

    async fn write(&mut self, batches: Batches<'_>) -> Result<(), Failed> {
        self.store(&batches.events()).await
    }

    async fn idle(&mut self) {
        let tidied = self.blocking(|this| this.tidy()).await;
        if let Err(error) = tidied {
            tracing::warn!(%error, "old files of the archive are not tidied");
        }
    }
}

impl Jsonl {
    /// Writes events that it has not written.
    async fn store(&mut self, events: &[Event]) -> Result<(), Failed> {
        let mut lines: Vec<(EventId, String, Vec<u8>)> = Vec::with_capacity(events.len());
        for event in events {
            let mut line = serde_json::to_vec(&event.json).map_err(|error| Failed(error.to_string()))?;
            line.push(b'\n');
            lines.push((event.id, day_of(event.id.batch.ms), line));
        }
        self.blocking(move |this| this.append(&lines)).await
    }

    /// File work is done on a thread that may wait for the disk.
    async fn blocking(
        &mut self,
        work: impl FnOnce(&mut Self) -> io::Result<()> + Send + 'static,
    ) -> Result<(), Failed> {
        let mut this = std::mem::replace(self, Self::new(self.settings.clone()));
        let joined = tokio::task::spawn_blocking(move || {
            let result = work(&mut this);
            (this, result)
        });
        let (this, result) = joined.await.map_err(|error| Failed(error.to_string()))?;
        *self = this;
        let directory = self.settings.directory.display();
        result.map_err(|error| Failed(format!("{directory}: {error}")))
    }

    fn append(&mut self, lines: &[(EventId, String, Vec<u8>)]) -> io::Result<()> {
        if !self.is_known {
            self.look()?;
        }
        let mut rest: Vec<&(EventId, String, Vec<u8>)> =
            lines.iter().filter(|(id, ..)| self.last.is_none_or(|last| *id > last)).collect();
        while let Some((_, day, _)) = rest.first() {
            let day = day.clone();
            self.open_for(&day)?;
            let Some(open) = &mut self.open else { return Err(io::Error::other("no file is open")) };
            let mut room = self.settings.file_bytes.saturating_sub(open.bytes);
            let mut blob = Vec::new();
            let mut count = 0;
            for (_, _, line) in rest.iter().take_while(|(_, of, _)| *of == day) {
                // At least one line, however long.
                if count > 0 && line.len() as u64 > room {
                    break;
                }
                room = room.saturating_sub(line.len() as u64);
                blob.extend_from_slice(line);
                count += 1;
            }
            let before = open.bytes;
            if let Err(error) = open.file.write_all(&blob).and_then(|()| open.file.sync_data()) {
                // Half a line must not stay in front of the next.
                let _ = open.file.set_len(before);
                self.open = None;
                self.is_known = false;
                return Err(error);
            }
            open.bytes += blob.len() as u64;
            self.last = rest.get(count - 1).map(|(id, ..)| *id);
            rest.drain(..count);
        }
        Ok(())
    }

    /// Opens the file for a day, the next number when the last is full.
    fn open_for(&mut self, day: &str) -> io::Result<()> {
        if let Some(open) = &self.open
            && open.day == day
            && open.bytes < self.settings.file_bytes
        {
            return Ok(());
        }
        let full = self.open.take();
        let number = match &full {
            Some(full) if full.day == day => full.number + 1,
            _ => next_number(&self.settings.directory, day)?,
        };
        let path = self.settings.directory.join(format!("events-{day}-{number:02}.jsonl"));
        let file = OpenOptions::new().create(true).append(true).open(&path)?;
        let bytes = file.metadata()?.len();
        self.open = Some(Open { file, path, day: day.to_owned(), number, bytes });
        // The name must survive a power cut as well.
        File::open(&self.settings.directory)?.sync_all()?;
        if let Some(full) = full {
            pack(&full.path)?;
        }
        Ok(())
    }

    /// Finds the last whole line of what is there.
    fn look(&mut self) -> io::Result<()> {
        let directory = &self.settings.directory;
        std::fs::create_dir_all(directory)?;
        let mark = directory.join(".instance");
        let is_ours = match std::fs::read_to_string(&mark) {
            Ok(found) => found.trim() == self.settings.instance,
            Err(error) if error.kind() == io::ErrorKind::NotFound => true,
            Err(error) => return Err(error),
        };
        self.open = None;
        self.last = None;
        if is_ours {
            // A crash just after a new file was begun leaves it empty: then the last line is in one before it.
            for path in files(directory)?.into_iter().rev() {
                self.last = if is_plain(&path) {
                    let mut file = OpenOptions::new().read(true).append(true).open(&path)?;
                    let (bytes, last) = last_line(&mut file)?;
                    file.set_len(bytes)?;
                    if self.open.is_none() {
                        let (day, number) = day_and_number(&path);
                        self.open = Some(Open { file, path, day, number, bytes });
                    }
                    last
                } else {
                    last_packed_line(&path)?
                };
                if self.last.is_some() {
                    break;
                }
            }
        } else {
            tracing::warn!(directory = %directory.display(), "the archive is of another Redis; a new file begins");
        }
        std::fs::write(mark, &self.settings.instance)?;
        self.is_known = true;
        Ok(())
    }

    /// Packs what is full and removes what is old.
    fn tidy(&mut self) -> io::Result<()> {
        let open = self.open.as_ref().map(|open| open.path.clone());
        for path in
            files(&self.settings.directory)?.into_iter().filter(|path| is_plain(path) && Some(path) != open.as_ref())
        {
            pack(&path)?;
        }
        let mut kept = 0;
        for path in files(&self.settings.directory)?.into_iter().rev() {
            let metadata = std::fs::metadata(&path)?;
            kept += metadata.len();
            let age = SystemTime::now().duration_since(metadata.modified()?).unwrap_or_default();
            if Some(&path) != open.as_ref() && (age > self.settings.keep || kept > self.settings.total_bytes) {
                std::fs::remove_file(&path)?;
            }
        }
        Ok(())
    }
}

fn is_plain(path: &Path) -> bool {
    path.extension().is_some_and(|extension| extension == "jsonl")
}

fn day_of(ms: u64) -> String {
    let at = i64::try_from(ms).ok().and_then(DateTime::<Utc>::from_timestamp_millis);
    at.map_or_else(|| "00000000".into(), |at| at.format("%Y%m%d").to_string())
}

/// The archive's files, oldest first.
fn files(directory: &Path) -> io::Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(directory)? {
        let path = entry?.path();
        let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
        if name.starts_with("events-") && (name.ends_with(".jsonl") || name.ends_with(".jsonl.gz")) {
            found.push(path);
        }
    }
    // By day, then by number: `-100` comes after `-99`.
    found.sort_by_key(|path| {
        let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default().to_owned();
        let mut parts = name.trim_start_matches("events-").split(['-', '.']);
        let day = parts.next().unwrap_or_default().to_owned();
        (day, parts.next().and_then(|number| number.parse::<u32>().ok()).unwrap_or(0), name)
    });
    Ok(found)
}

fn next_number(directory: &Path, day: &str) -> io::Result<u32> {
    let of_day = |path: &PathBuf| {
        let name = path.file_name()?.to_str()?.strip_prefix("events-")?.strip_prefix(day)?.strip_prefix('-')?;
        name.split('.').next()?.parse::<u32>().ok()
    };
    Ok(files(directory)?.iter().filter_map(of_day).max().map_or(0, |number| number + 1))
}

/// `events-<day>-<number>.jsonl`.
fn day_and_number(path: &Path) -> (String, u32) {
    let name = path.file_stem().and_then(|name| name.to_str()).unwrap_or_default();
    let mut parts = name.split('-').skip(1);
    let day = parts.next().unwrap_or_default().to_owned();
    (day, parts.next().and_then(|number| number.parse().ok()).unwrap_or(0))
}

/// The id of the last line of a packed file.
fn last_packed_line(path: &Path) -> io::Result<Option<EventId>> {
    let mut last = Vec::new();
    for line in BufReader::new(GzDecoder::new(File::open(path)?)).split(b'\n') {
        last = line?;
    }
    Ok(id_of(&last))
}

/// The place in the journal of what a line tells.
fn id_of(line: &[u8]) -> Option<EventId> {
    let event: serde_json::Value = serde_json::from_slice(line).ok()?;
    // An event that was posted has an id of its own.
    event.get("journalId").unwrap_or(&event["id"]).as_str()?.parse().ok()
}

/// Where the last whole line ends, and its id.
fn last_line(file: &mut File) -> io::Result<(u64, Option<EventId>)> {
    /// The longest line that is looked for.
    const TAIL: u64 = 4 << 20;
    let length = file.metadata()?.len();
    let from = length.saturating_sub(TAIL);
    file.seek(SeekFrom::Start(from))?;
    let mut tail = Vec::new();
    file.read_to_end(&mut tail)?;
    let Some(end) = tail.iter().rposition(|byte| *byte == b'\n') else {
        return Ok((if from == 0 { 0 } else { length }, None));
    };
    let whole = &tail[..end];
    let start = whole.iter().rposition(|byte| *byte == b'\n').map_or(0, |at| at + 1);
    Ok((from + end as u64 + 1, id_of(&whole[start..])))
}

/// Replaces a file by its packed form. A crash leaves both, and the next tidying begins again.
fn pack(path: &Path) -> io::Result<()> {
    let mut packed = path.as_os_str().to_owned();
    packed.push(".gz");
    let packed = PathBuf::from(packed);
    let temporary = packed.with_extension("gz.part");
    let mut encoder = GzEncoder::new(File::create(&temporary)?, Compression::fast());
    let mut reader = BufReader::new(File::open(path)?);
    loop {
        let chunk = reader.fill_buf()?;
        if chunk.is_empty() {
            break;
        }
        encoder.write_all(chunk)?;
        let used = chunk.len();
        reader.consume(used);
    }
    encoder.finish()?.sync_all()?;
    std::fs::rename(&temporary, &packed)?;
    std::fs::remove_file(path)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::streams::entry_id::EntryId;

    fn settings(directory: &Path) -> Settings {
        Settings {
            directory: directory.to_owned(),
            file_bytes: 200,
            total_bytes: 1 << 20,
            keep: Duration::from_secs(3600),
            instance: "one".into(),
        }
    }

    fn events(from: u64, count: u64) -> Vec<Event> {
        (from..from + count)
            .map(|n| {
                let id = EventId { batch: EntryId { ms: 1_772_981_290_000 + n, seq: 0 }, n: 0 };
                Event { id, json: serde_json::json!({ "id": id.to_string(), "n": n }) }
            })
            .collect()
    }

    /// The numbers in all files, in order.
    fn archived(directory: &Path) -> Vec<u64> {
        let mut numbers = Vec::new();
        for path in files(directory).unwrap() {
            let mut text = String::new();
            let mut file = File::open(&path).unwrap();
            if is_plain(&path) {
                file.read_to_string(&mut text).unwrap();
            } else {
                GzDecoder::new(file).read_to_string(&mut text).unwrap();
            }
            for line in text.lines() {
                numbers.push(serde_json::from_str::<serde_json::Value>(line).unwrap()["n"].as_u64().unwrap());
            }
        }
        numbers
    }

    #[tokio::test]
    async fn a_restart_goes_on_after_the_last_whole_line_and_full_files_are_packed() {
        let home = tempfile::tempdir().unwrap();
        let directory = home.path().join("otel");
        let mut sink = Jsonl::new(settings(&directory));
        sink.store(&events(0, 10)).await.unwrap();
        // A crash in the middle of a line.
        let newest = files(&directory).unwrap().pop().unwrap();
        OpenOptions::new().append(true).open(&newest).unwrap().write_all(br#"{"id":"17729"#).unwrap();
        let mut again = Jsonl::new(settings(&directory));
        // The cursor had not moved: some of it is repeated.
        again.store(&events(5, 20)).await.unwrap();
        assert_eq!(archived(&directory), (0..25).collect::<Vec<_>>());
        let all = files(&directory).unwrap();
        assert!(all.len() >= 3 && all[..all.len() - 1].iter().all(|path| !is_plain(path)), "{all:?}");

        let mut small = Jsonl::new(Settings { total_bytes: 300, ..settings(&directory) });
        small.store(&events(25, 1)).await.unwrap();
        small.idle().await;
        let left = archived(&directory);
        assert!(left.len() < 20 && left.ends_with(&[25]), "the oldest went: {left:?}");
    }

    #[tokio::test]
    async fn a_crash_just_after_a_new_file_was_begun_repeats_nothing() {
        let home = tempfile::tempdir().unwrap();
        Jsonl::new(settings(home.path())).store(&events(0, 10)).await.unwrap();
        // The file that was full, packed or not, and the new one, which has no line or half of one.
        for (is_packed, half) in [(false, ""), (true, ""), (true, r#"{"id":"17"#)] {
            let newest = files(home.path()).unwrap().pop().unwrap();
            let (day, number) = day_and_number(&newest);
            if is_packed && is_plain(&newest) {
                pack(&newest).unwrap();
            }
            std::fs::write(home.path().join(format!("events-{day}-{:02}.jsonl", number + 1)), half).unwrap();
            Jsonl::new(settings(home.path())).store(&events(0, 10)).await.unwrap();
            assert_eq!(archived(home.path()), (0..10).collect::<Vec<_>>(), "packed: {is_packed}, {half:?}");
        }
    }

    #[tokio::test]
    async fn another_data_set_is_not_taken_for_what_is_there() {
        let home = tempfile::tempdir().unwrap();
        let mut sink = Jsonl::new(settings(home.path()));
        sink.store(&events(100, 1)).await.unwrap();
        let mut other = Jsonl::new(Settings { instance: "two".into(), ..settings(home.path()) });
        other.store(&events(1, 1)).await.unwrap();
        assert_eq!(archived(home.path()), [100, 1]);
    }

    #[tokio::test]
    async fn a_disk_that_takes_nothing_is_an_error_that_names_it_and_later_nothing_is_missing() {
        let home = tempfile::tempdir().unwrap();
        let directory = home.path().join("otel");
        std::fs::write(&directory, "in the way").unwrap();
        let mut sink = Jsonl::new(settings(&directory));
        let error = sink.store(&events(0, 2)).await.unwrap_err();
        assert!(error.0.contains("otel"), "{error}");
        std::fs::remove_file(&directory).unwrap();
        sink.store(&events(0, 2)).await.unwrap();
        assert_eq!(archived(&directory), [0, 1]);
    }
}
