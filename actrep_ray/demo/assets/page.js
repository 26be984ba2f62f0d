// Moves the player to a repetition that is clicked, and shows in the timeline where it is.
(() => {
  const player = () => document.querySelector("#player video");
  const all = selector => [...document.querySelectorAll(`#result ${selector}`)];

  function follow() {
    const video = player(), now = all(".now")[0], soFar = all(".so-far")[0];
    if (!video || !now) return;
    const time = video.currentTime;
    now.style.left = `${100 * Math.min(1, time / Number(now.dataset.length))}%`;
    const repetitions = all(".repetitions [data-seek]");
    for (const one of all("[data-seek]"))
      one.classList.toggle("is-now", Number(one.dataset.seek) <= time && time < Number(one.dataset.end));
    const done = repetitions.filter(one => Number(one.dataset.end) <= time).length;
    soFar.hidden = !time;
    soFar.textContent = `${done} / ${repetitions.length} so far`;
  }

  document.addEventListener("click", event => {
    const one = event.target.closest?.("#result [data-seek]"), video = player();
    if (!one || !video) return;
    video.currentTime = Number(one.dataset.seek);
  });
  // Events of a player do not bubble, but they are met on their way down.
  for (const name of ["timeupdate", "seeked", "seeking"])
    document.addEventListener(name, follow, true);
})();
