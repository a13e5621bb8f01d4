// Two videos that play as one: one clock, one seek, one end. The longer one leads; the other is held to its time by a
// slightly other speed, or by a seek where it is far off. The shorter one stays on its last frame.

const NEAR = 0.008, FAR = 0.2; // seconds apart: left alone below the one, sought above the other
const PULL = 1.5, MOST = 0.1; // speed that is added for a second apart, and at most
const READY = 3; // HAVE_FUTURE_DATA
const END = 0.03; // seconds before the end that count as the end: browsers stop a little early

/** The speed that brings a follower to its leader's time, or null where it must seek. */
export function speedFor(gap) {
  if (Math.abs(gap) > FAR) return null;
  return Math.abs(gap) < NEAR ? 1 : 1 - Math.max(-MOST, Math.min(MOST, gap * PULL));
}

const lengthOf = (video) => (Number.isFinite(video.duration) ? video.duration : 0);

export class Together {
  /**
   * @param {HTMLVideoElement[]} videos two
   * @param {{soon: (act: () => void) => void, changed: () => void}} given `soon` is requestAnimationFrame
   */
  constructor(videos, { soon, changed }) {
    Object.assign(this, { videos, soon, changed, playing: false, loop: true, asked: null, waiting: false });
    this.wanted = new Map(); // video -> the time to seek to when it has sought
    for (const video of videos) {
      video.addEventListener("seeked", () => this.onSought(video));
      for (const name of ["loadedmetadata", "durationchange", "loadeddata", "canplay"]) {
        video.addEventListener(name, () => changed());
      }
    }
  }

  get length() {
    return Math.max(...this.videos.map(lengthOf));
  }

  get leader() {
    return this.videos.reduce((a, b) => (lengthOf(b) > lengthOf(a) ? b : a));
  }

  /** Seconds; while it seeks, what was asked for. */
  get time() {
    return this.asked ?? Math.min(this.leader.currentTime, this.length);
  }

  /** Show other files, from their beginning. */
  open(addresses) {
    this.close();
    this.videos.forEach((video, i) => {
      video.src = addresses[i];
      video.load();
    });
    this.changed();
  }

  /** Stop and let go of the files. */
  close() {
    this.pause();
    this.wanted.clear();
    this.asked = null;
    for (const video of this.videos) {
      video.removeAttribute("src");
      video.load();
    }
  }

  toggle() {
    return this.playing ? this.pause() : this.play();
  }

  play() {
    if (this.playing || !this.length) return;
    if (this.time >= this.length - END) this.seek(0);
    this.playing = true;
    this.changed();
    this.tick();
  }

  pause() {
    this.playing = this.waiting = false;
    for (const video of this.videos) {
      video.pause();
      video.playbackRate = 1;
    }
    // The one that was led may be a frame or two off.
    const time = this.time;
    for (const video of this.others()) if (!this.isOver(video, time)) this.aim(video, time);
    this.changed();
  }

  /** Go to a time in seconds; a video that is shorter shows its last frame. */
  seek(time) {
    this.asked = Math.max(0, Math.min(this.length, time));
    for (const video of this.videos) this.aim(video, this.asked);
    this.changed();
  }

  aim(video, time) {
    const to = Math.min(time, lengthOf(video));
    if (video.seeking) this.wanted.set(video, to); // a drag asks faster than a video seeks
    else if (Math.abs(video.currentTime - to) > 1e-4) video.currentTime = to;
    else if (!this.videos.some((one) => one.seeking)) this.asked = null;
  }

  onSought(video) {
    const to = this.wanted.get(video);
    this.wanted.delete(video);
    if (to !== undefined) this.aim(video, to);
    if (!this.videos.some((one) => one.seeking)) this.asked = null;
    this.changed();
  }

  others() {
    return this.videos.filter((video) => video !== this.leader);
  }

  isOver(video, time) {
    return time >= lengthOf(video) - END;
  }

  /** Keep both in step, once for every frame of the screen. */
  tick() {
    if (!this.playing) return;
    if (this.videos.some((video) => video.isConnected === false)) return this.pause(); // out of sight, and nobody could stop it
    const { leader } = this, time = this.time;
    if (this.asked === null && (leader.ended || this.isOver(leader, time))) return this.onEnd();
    const running = this.videos.filter((video) => !this.isOver(video, time));
    this.waiting = running.some((video) => video.seeking || video.readyState < READY);
    for (const video of this.videos) this.run(video, running.includes(video) && !this.waiting);
    if (!this.waiting) for (const video of this.others()) if (running.includes(video)) this.pull(video, time);
    this.changed();
    this.soon(() => this.tick());
  }

  run(video, isToRun) {
    if (!isToRun && !video.paused) video.pause();
    // A play that is cut off by a pause says so; one that is forbidden stops both.
    if (isToRun && video.paused) video.play()?.catch?.((error) => error.name !== "AbortError" && this.pause());
  }

  pull(video, time) {
    const speed = speedFor(video.currentTime - time);
    video.playbackRate = speed ?? 1;
    if (speed === null) this.aim(video, time);
  }

  onEnd() {
    if (!this.loop) return this.pause();
    this.seek(0);
    this.soon(() => this.tick());
  }
}
