//! `phalanx top`: a running server in a terminal, here or far away, from its `/metrics`.

mod frame;
mod scrape;

use std::collections::VecDeque;
use std::io::Write;
use std::sync::mpsc::{self, Receiver, Sender};
use std::time::Duration;

use anyhow::{Result, anyhow, bail};
use crossterm::event::{self, Event, KeyCode, KeyEvent, KeyEventKind, KeyModifiers};
use crossterm::terminal::{Clear, ClearType, EnterAlternateScreen, LeaveAlternateScreen};
use crossterm::{cursor, queue, style};

use crate::args::TopArgs;
use crate::terminal;
use frame::View;
use scrape::{NoFigures, Scrape, Source, full_address};

/// Looks that are remembered: rates are over the last ten.
const REMEMBERED: usize = 10;
/// How long a key may wait.
const KEY_WAIT: Duration = Duration::from_millis(100);

/// Shows until `q`, or one picture.
pub(crate) fn run(args: &TopArgs) -> Result<()> {
    let url = full_address(&args.url);
    let source = Source { url: url.clone(), api_key: args.api_key.clone().filter(|key| !key.is_empty()) };
    let interval = Duration::from_secs_f64(args.interval);
    if args.once {
        return once(&source, interval);
    }
    if !terminal::is_watched() {
        bail!("standard output is no terminal: take --once for one picture as text");
    }
    let (looks, receiver) = mpsc::channel();
    std::thread::Builder::new().name("top".to_owned()).spawn(move || look(&source, interval, &looks))?;
    let _screen = Screen::take()?;
    show(&url, &receiver)
}

/// Two looks, for rates, and one picture.
fn once(source: &Source, interval: Duration) -> Result<()> {
    let look = || {
        source.scrape().map_err(|error| match error {
            NoFigures::Nobody(reason) => {
                anyhow!("{reason}: start one with `phalanx serve`, or give the address of another with --url")
            }
            NoFigures::Refused(reason) => anyhow!(reason),
        })
    };
    let before = look()?;
    std::thread::sleep(interval);
    let now = look()?;
    for line in frame::draw(&View { url: &source.url, before: &before, now: &now }) {
        terminal::say(line.trim_end());
    }
    Ok(())
}

/// Looks again and again, until nobody wants to know.
fn look(source: &Source, interval: Duration, looks: &Sender<Result<Scrape, NoFigures>>) {
    while looks.send(source.scrape()).is_ok() {
        std::thread::sleep(interval);
    }
}

fn show(url: &str, looks: &Receiver<Result<Scrape, NoFigures>>) -> Result<()> {
    let mut remembered: VecDeque<Scrape> = VecDeque::new();
    let mut trouble = Some(format!("asking {url}"));
    paint(&picture(url, &remembered, trouble.as_deref()))?;
    loop {
        let mut changed = false;
        while let Ok(look) = looks.try_recv() {
            changed = true;
            match look {
                Ok(scrape) => {
                    trouble = None;
                    remembered.push_back(scrape);
                    remembered.drain(..remembered.len().saturating_sub(REMEMBERED));
                }
                Err(reason) => trouble = Some(format!("{reason}; trying again")),
            }
        }
        if event::poll(KEY_WAIT)? {
            match event::read()? {
                Event::Key(key) if ends(key) => return Ok(()),
                Event::Resize(..) => changed = true,
                _ => {}
            }
        }
        if changed {
            paint(&picture(url, &remembered, trouble.as_deref()))?;
        }
    }
}

fn ends(key: KeyEvent) -> bool {
    let interrupt = key.code == KeyCode::Char('c') && key.modifiers.contains(KeyModifiers::CONTROL);
    key.kind == KeyEventKind::Press && (interrupt || matches!(key.code, KeyCode::Char('q') | KeyCode::Esc))
}

fn picture(url: &str, remembered: &VecDeque<Scrape>, trouble: Option<&str>) -> Vec<String> {
    let mut lines = match (remembered.front(), remembered.back()) {
        (Some(before), Some(now)) => frame::draw(&View { url, before, now }),
        _ => vec![format!("phalanx top {url}"), String::new()],
    };
    // Below the title, where it is seen on any screen.
    lines[1] = trouble.unwrap_or_default().to_owned();
    lines.extend([String::new(), "q quits".to_owned()]);
    lines
}

/// Line over line: a screen that is cleared first would flicker.
fn paint(lines: &[String]) -> Result<()> {
    let (width, height) = crossterm::terminal::size()?;
    let mut out = std::io::stdout();
    for (row, line) in lines.iter().enumerate().take(usize::from(height)) {
        let shown: String = line.chars().take(usize::from(width)).collect();
        queue!(
            out,
            cursor::MoveTo(0, u16::try_from(row).unwrap_or(u16::MAX)),
            style::Print(shown),
            Clear(ClearType::UntilNewLine)
        )?;
    }
    queue!(out, Clear(ClearType::FromCursorDown))?;
    Ok(out.flush()?)
}

/// The terminal, taken over; given back when dropped, also in a panic.
struct Screen;

impl Screen {
    fn take() -> Result<Self> {
        crossterm::terminal::enable_raw_mode()?;
        let screen = Self;
        queue!(std::io::stdout(), EnterAlternateScreen, cursor::Hide)?;
        Ok(screen)
    }
}

impl Drop for Screen {
    fn drop(&mut self) {
        // A terminal that is gone has no use for either.
        let _left = queue!(std::io::stdout(), LeaveAlternateScreen, cursor::Show);
        let _flushed = std::io::stdout().flush();
        let _restored = crossterm::terminal::disable_raw_mode();
    }
}
