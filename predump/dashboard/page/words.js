// What a migration's state means, in a word and in a sentence.
import { count, pages } from "./dom.js";

// [word, colour class] of a row.
export function verdict(row) {
  if (row.in_doubt && row.ended) return ["in doubt", "bad"];
  if (row.host_lost) return ["host lost", "bad"];
  if (row.ended && row.aborted) return ["aborted", "bad"];
  if (row.ended && row.verified === true && !row.failed) return ["verified", "good"];
  if (row.verified === false && (row.ended || row.downtime_s)) return [row.failed ? "failed" : "differs", "bad"];
  if (row.ended) return [row.state, row.failed || row.state === "failed" ? "bad" : ""];
  return [DOING[row.state] ?? row.state, "busy"];
}

const DOING = {
  prepare: "getting ready", round: "pre-dumping", freeze: "frozen", final: "frozen", verify: "comparing",
  commit: "handing over", resume: "running there", continue: "running there", serve: "pages come later",
  released: "pages are there", compare: "comparing",
};

const MEANING = {
  prepare: "The destination is asked for room.",
  round: "The task runs at the source while its pages are copied; what it writes meanwhile is sent again.",
  freeze: "The task stands still: this is the downtime.",
  final: "The task stands still while the last pages go over: this is the downtime.",
  verify: "Both hosts compute digests of every page and compare them. The source still has the task.",
  commit: "The pages are equal; the task changes hands.",
  resume: "The task runs at the destination.",
  continue: "The task runs at the destination, from the memory that came over.",
  serve: "The task runs at the destination already, and waits there for pages that have not come yet. If the source is lost now, it stops.",
  released: "All pages are at the destination; the source has let go.",
  compare: "What the task did since is compared with a run that never moved.",
};

export function meaning(told) {
  if (told.in_doubt && told.ended) {
    return "The source offered the task and does not know whether it was taken. It stands still there with all its memory until somebody settles it: nobody else may start it.";
  }
  if (told.host_lost) return "A host of it went away, or began anew, before the end. What is shown is the last that was heard.";
  if (told.ended && told.verified === true && !told.failed) {
    return "Every page was compared and is equal; the destination has the task" +
      (told.continued_equal ? ", and it went on as if it had never moved." : told.continued_equal === false ?
        ", but then it did not do what a run does that never moved." : ".");
  }
  if (told.verified === true && told.failed) return "The pages were equal and the task went over; what failed came after that.";
  if (told.pages_different && told.owner === "source") {
    return "Pages at the destination were not what the source has, so the task was not handed over: the source kept it and lets it go on.";
  }
  if (told.ended && told.owner === "source") return "The task was not handed over: the source kept it and lets it go on.";
  return MEANING[told.state] ?? "";
}

// Why pages differ: what was written and not reported was lost by the tracker, the rest was not.
export function cause(told) {
  const lost = told.pages_lost ?? 0, wrong = told.pages_different ?? 0;
  if (!wrong) return "";
  if (lost >= wrong) return `${wrong === 1 ? "It was" : "They were"} written and not reported as soft-dirty, so ${wrong === 1 ? "it was" : "they were"} not sent again.`;
  if (lost) return `${count(lost)} of them were written and not reported as soft-dirty; the others were reported.`;
  return "All that was written was reported as soft-dirty: these pages went wrong while they were copied, on the way, or at the destination.";
}

export const differ = (n) => `${pages(n)} ${n === 1 ? "differs" : "differ"}`;

export const PARTS = {
  freeze: "stopping the task", scan: "finding the last pages", dump: "gathering the first of them",
  transfer: "sending them", restore: "rebuilding the task", resume: "until it can run there",
};
