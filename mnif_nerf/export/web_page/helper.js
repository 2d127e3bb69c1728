// The page's side of `tasks.js`: a worker made of the page's own script, which works without a server; where the browser
// allows none, the page does the work itself.

class Helper {
  constructor() {
    this.asked = new Map();
    this.count = 0;
    this.worker = null;
    try {
      const text = `${part("shared").textContent}\nshared.serve(self);`;
      this.worker = new Worker(URL.createObjectURL(new Blob([text], { type: "text/javascript" })));
      this.worker.onmessage = ({ data }) => this.answer(data);
      this.worker.onerror = () => this.giveUp();
    } catch {
      this.worker = null;
    }
  }

  // A promise of what the task gives.
  ask(task, input) {
    return new Promise((resolve, reject) => {
      this.count += 1;
      const request = { id: this.count, task, input };
      this.asked.set(request.id, { request, resolve, reject });
      if (this.worker) this.worker.postMessage(request);
      else this.doHere(request);
    });
  }

  answer({ id, result, error }) {
    const { resolve, reject } = this.asked.get(id);
    this.asked.delete(id);
    if (error) reject(new Error(error));
    else resolve(result);
  }

  doHere({ id, task, input }) {
    setTimeout(() => {
      try {
        this.answer({ id, result: tasks[task](input) });
      } catch (error) {
        this.answer({ id, error: error.message });
      }
    });
  }

  // The worker does not run here: do all that it was asked for.
  giveUp() {
    this.worker = null;
    for (const { request } of this.asked.values()) this.doHere(request);
  }
}

let helper = null;

function ask(task, input) {
  helper = helper || new Helper();
  return helper.ask(task, input);
}
