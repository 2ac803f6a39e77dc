// The Verilated model behind functions that any language can call: one model, one thread, no time of Verilator's own.

#include "Vaccelerator.h"
#include "verilated.h"
#include "verilated_save.h"

#include <cstdint>
#include <cstring>
#include <memory>
#include <new>
#include <vector>

namespace {

// VerilatedSave writes to a file and ignores the errors of its close(); these are the same streams in memory. Whoever calls
// makes a file of it, complete or not at all.
class Saving final : public VerilatedSerialize {
public:
    std::vector<uint8_t> bytes;
    explicit Saving(Vaccelerator& model) {
        header();
        *this << model;
        trailer();
        append();
    }
    void flush() override { append(); }

private:
    void append() {
        bytes.insert(bytes.end(), m_bufp, m_cp);
        m_cp = m_bufp;
    }
};

class Loading final : public VerilatedDeserialize {
public:
    Loading(const uint8_t* from, size_t length) : m_from{from}, m_left{length} {
        m_cp = m_endp = m_bufp;
        header();
    }
    void finish() { trailer(); }

protected:
    void fill() override {
        const size_t kept = m_endp - m_cp;
        std::memmove(m_bufp, m_cp, kept);
        m_cp = m_bufp;
        const size_t room = bufferSize() - kept;
        const size_t count = room < m_left ? room : m_left;
        std::memcpy(m_bufp + kept, m_from, count);
        std::memset(m_bufp + kept + count, 0, room - count);
        m_from += count;
        m_left -= count;
        m_endp = m_bufp + bufferSize();
    }

private:
    const uint8_t* m_from;
    size_t m_left;
};

// How far the save of one model begins as that of any other moment: Verilator's own signature (16 bytes), whether it has been
// evaluated, and the check value of the model. A wrong one would end the process.
constexpr size_t BEGIN = 16 + 1 + 8;
// And how it ends.
constexpr size_t END = 8;

// Of accelerator.sv.
constexpr uint32_t WRITE_REGISTER = 1;

}  // namespace

extern "C" {

struct model {
    VerilatedContext context;
    std::unique_ptr<Vaccelerator> top;

    void edge() {
        top->clk = 1;
        top->eval();
        top->clk = 0;
        top->eval();
    }
};

const char* model_digest() { return MODEL_DIGEST; }
uint32_t model_ram() { return MODEL_RAM; }
uint32_t model_fifo() { return MODEL_FIFO; }

model* model_power_on(uint64_t boot) {
    model* made = new (std::nothrow) model;
    if (!made) return nullptr;
    made->context.threads(1);
    made->top.reset(new Vaccelerator{&made->context});
    made->top->clk = 0;
    made->top->boot_cycles = boot;
    made->top->reset = 1;
    made->top->trst = 1;
    // The first evaluation looks for no edges.
    made->top->eval();
    made->edge();
    made->top->reset = 0;
    made->top->trst = 0;
    made->top->eval();
    return made;
}

void model_free(model* of) { delete of; }

// Lets cycles pass, until the interrupt line is up if so asked; how many have passed.
uint64_t model_step(model* of, uint64_t cycles, int until_interrupt) {
    Vaccelerator& top = *of->top;
    uint64_t passed = 0;
    top.advance = 1;
    for (; passed < cycles && !(until_interrupt && top.irq); ++passed) of->edge();
    top.advance = 0;
    return passed;
}

// An access that changes something: it takes no cycle.
void model_access(model* of, uint32_t operation, uint32_t address, uint32_t data, uint32_t element) {
    Vaccelerator& top = *of->top;
    top.operation = operation;
    top.address = address;
    top.data = data;
    top.element = element;
    of->edge();
}

// A look at a value; 0 if there is none.
int model_look(model* of, uint32_t operation, uint32_t address, uint32_t element, uint32_t* value) {
    Vaccelerator& top = *of->top;
    top.operation = operation;
    top.address = address;
    top.element = element;
    top.eval();
    *value = top.value;
    return top.there;
}

// Sets the pins of the test access port. This is the board: with a rising edge of TCK in Run-Test/Idle a cycle of the design
// passes, and a register is written at the end of the Update-DR that asks for it.
void model_port(model* of, int tck, int tms, int tdi) {
    Vaccelerator& top = *of->top;
    const bool rises = tck && !top.tck, falls = !tck && top.tck;
    const bool runs = rises && top.tap_runs;
    if (falls && top.tap_writes) model_access(of, WRITE_REGISTER, top.tap_number, top.tap_data, 0);
    top.tck = tck;
    top.tms = tms;
    top.tdi = tdi;
    top.eval();
    if (runs) model_step(of, 1, 0);
}

void model_port_reset(model* of, int reset) {
    of->top->trst = reset;
    of->top->eval();
}

int model_port_tdo(model* of) { return of->top->tdo; }

uint64_t model_cycle(model* of) { return of->top->cycle; }
int model_interrupt(model* of) { return of->top->irq; }
int model_full(model* of) { return of->top->full; }
int model_empty(model* of) { return of->top->empty; }

// Hands the whole state on.
void model_save(model* of, void (*take)(void*, const uint8_t*, size_t), void* whom) {
    const Saving saving{*of->top};
    take(whom, saving.bytes.data(), saving.bytes.size());
}

// 0 if these bytes are not the state of such a model.
int model_load(model* of, const uint8_t* bytes, size_t length) {
    const Saving mine{*of->top};
    const uint8_t* right = mine.bytes.data();
    if (length != mine.bytes.size() || std::memcmp(bytes, right, BEGIN) != 0) return 0;
    if (std::memcmp(bytes + length - END, right + length - END, END) != 0) return 0;
    Loading loading{bytes, length};
    loading >> *of->top;
    loading.finish();
    of->top->eval();
    return 1;
}
}
