// Plays a URL in headless Chromium with a player library and says on standard
// output, as one line of JSON, what a viewer would have seen.
//
//   node play.mjs hls.js|mpegts.js URL SECONDS
//
// It ends once that many seconds of the stream were shown, or after four times as
// long and 20 s. Exit code 0 says that it has played, whatever that looked like.
import { createRequire } from 'node:module';
import { chromium } from 'playwright-core';

const [library, url, seconds] = process.argv.slice(2);
const scripts = { 'hls.js': 'hls.js/dist/hls.min.js', 'mpegts.js': 'mpegts.js/dist/mpegts.js' };
if (!scripts[library] || !url || !(Number(seconds) > 0)) {
  console.error('usage: play.mjs hls.js|mpegts.js URL SECONDS');
  process.exit(2);
}

const browser = await chromium.launch({
  executablePath: process.env.CHROMIUM ?? '/usr/bin/chromium',
  args: [
    '--no-sandbox', // the tests may run as root
    '--autoplay-policy=no-user-gesture-required',
    '--disable-gpu', '--disable-quic', '--no-first-run', '--disable-background-networking', '--disable-component-update', '--disable-sync',
  ],
});
try {
  const page = await browser.newPage();
  await page.setContent('<video muted autoplay playsinline></video>');
  await page.addScriptTag({ path: createRequire(import.meta.url).resolve(scripts[library]) });
  console.log(JSON.stringify(await page.evaluate(play, { library, url, seconds: Number(seconds) })));
} finally {
  await browser.close();
}

// play runs in the page.
async function play({ library, url, seconds }) {
  const video = document.querySelector('video');
  const errors = [];
  const begun = performance.now();
  let shown = 0; // seconds of the stream, jumps left out
  let stalls = 0;
  let last = null;
  let first = null; // ms until the first picture
  video.addEventListener('waiting', () => { if (shown > 0) stalls++; });
  video.addEventListener('timeupdate', () => {
    if (video.currentTime === 0 && last === null) return;
    first ??= Math.round(performance.now() - begun);
    const step = last === null ? 0 : video.currentTime - last;
    if (step > 0 && step < 1) shown += step;
    last = video.currentTime;
  });
  if (library === 'hls.js') {
    const hls = new Hls();
    hls.on(Hls.Events.ERROR, (_, e) => { if (e.fatal) errors.push(`${e.type}: ${e.details}`); });
    hls.loadSource(url);
    hls.attachMedia(video);
  } else {
    const player = mpegts.createPlayer({ type: 'flv', isLive: true, url });
    player.on(mpegts.Events.ERROR, (type, detail) => errors.push(`${type}: ${detail}`));
    player.attachMediaElement(video);
    player.load();
  }
  video.play().catch((e) => errors.push(String(e)));
  const patience = (4 * seconds + 20) * 1000;
  while (shown < seconds && errors.length === 0 && performance.now() - begun < patience) {
    await new Promise((resume) => setTimeout(resume, 50));
  }
  const quality = video.getVideoPlaybackQuality();
  return {
    shown, stalls, errors, firstPictureMs: first, playedMs: Math.round(performance.now() - begun),
    width: video.videoWidth, height: video.videoHeight,
    frames: quality.totalVideoFrames, dropped: quality.droppedVideoFrames,
    audioBytes: video.webkitAudioDecodedByteCount,
  };
}
