// The clock of a replay: which events have been by a moment. Nothing here touches the page.

// Milliseconds from the first event on, never going back; with `longest`, a pause between two events lasts at most so long.
export function offsets(events, longest = Infinity) {
  let at = 0;
  let before = null;
  return events.map((event) => {
    const time = Date.parse(event.ts);
    if (before !== null && time > before) at += Math.min(longest, time - before);
    if (!Number.isNaN(time)) before = Math.max(before ?? time, time);
    return at;
  });
}

export class Player {
  constructor(times) {
    Object.assign(this, { times, at: 0, speed: 1, playing: false });
  }

  get duration() {
    return this.times.at(-1) ?? 0;
  }

  // How many events have been by `at`.
  count(at = this.at) {
    let [low, high] = [0, this.times.length];
    while (low < high) {
      const middle = (low + high) >> 1;
      if (this.times[middle] <= at) low = middle + 1;
      else high = middle;
    }
    return low;
  }

  seek(at) {
    this.at = Math.min(this.duration, Math.max(0, at));
  }

  // The moment of the next event of another time, or of the one before.
  step(forward) {
    const shown = this.count();
    const target = forward ? this.times[shown] ?? this.duration : this.times.slice(0, shown).findLast((time) => time < this.at) ?? 0;
    this.seek(target);
  }

  // `elapsed` milliseconds of the reader's time have gone by. False at the end, where it stops.
  tick(elapsed) {
    if (!this.playing) return false;
    this.seek(this.at + elapsed * this.speed);
    if (this.at >= this.duration) this.playing = false;
    return this.playing;
  }
}
