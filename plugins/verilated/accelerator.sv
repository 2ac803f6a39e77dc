// The accelerator of softemu as hardware: the same registers, RAM, FIFOs, timer, pipeline and slow initialisation, cycle for
// cycle (../softemu/README.md). What a testbench sees of one it sees of the other.
//
// The clock has an edge for each thing that happens. `advance` lets a cycle of the design pass; without it the edge carries
// out one access of the bus, which takes no time of the design's, or a fault. Reading needs no edge.
//
// The test access port has a clock of its own, and sees and changes the same registers.
//
// Assignments are blocking, because within a cycle one thing follows the other, as in a pipeline drawn from its end.

module accelerator #(
    parameter int RAM  = 65536,
    parameter int FIFO = 64
) (
    input  logic        clk,
    input  logic        reset,
    input  logic [63:0] boot_cycles,
    input  logic        advance,
    input  logic [ 2:0] operation,   // see below
    input  logic [31:0] address,
    input  logic [31:0] data,
    input  logic [ 4:0] element,     // a state element, see below; the place in it is `address`
    output logic [31:0] value,       // of the register, the word of RAM, the word that would be popped, the element
    output logic        there,       // whether there is such a register or word
    output logic        irq,
    output logic [63:0] cycle,
    output logic        full,        // no room for a word that is pushed
    output logic        empty,       // nothing to pop
    input  logic        tck,         // the test access port, see tap.sv
    input  logic        tms,
    input  logic        tdi,
    input  logic        trst,
    output logic        tdo,
    output logic        tap_runs,
    output logic        tap_writes,
    output logic [31:0] tap_number,
    output logic [31:0] tap_data
);
    localparam logic [2:0] WRITE_REGISTER = 1, WRITE_RAM = 2, PUSH = 3, POP = 4, FLIP = 5, READ_RAM = 6, PEEK = 7;
    localparam logic [4:0] IDLE = 1, MIX = 2, MULTIPLY = 4, STORE = 8, OUTPUT = 16;
    localparam logic [31:0] READY_BIT = 1, TIMER_BIT = 2, OUTPUT_BIT = 4, INPUT_BIT = 8, FAULT_BIT = 16;
    localparam int WORD = $clog2(RAM);
    localparam int PLACE = $clog2(FIFO);

    logic [31:0] ram [RAM];
    logic [31:0] in_words [FIFO], out_words [FIFO], scratch [16];
    logic [31:0] in_first, in_count, out_first, out_count;
    logic [63:0] boot, random;
    logic [31:0] stage, word, accumulator, shadow, key, timer, period, enable, pending;

    assign irq = (pending & enable) != 0;
    assign full = in_count >= FIFO;
    assign empty = out_count == 0;

    function automatic logic [PLACE-1:0] place(input logic [31:0] first, input logic [31:0] offset);
        place = PLACE'(first + offset);
    endfunction

    function automatic logic [31:0] rotated(input logic [31:0] bits, input int count);
        rotated = (bits << count) | (bits >> (32 - count));
    endfunction

    // Whether there is such a register, and its value.
    function automatic logic [32:0] register(input logic [31:0] number);
        case (number)
            0: register = {1'b1, 32'h54464f53};
            1: register = {1'b1, 25'b0, stage != 32'(IDLE), irq, out_count >= FIFO, empty, full, in_count == 0, boot == 0};
            2: register = {1'b1, enable};
            3: register = {1'b1, pending};
            4: register = {1'b1, period};
            5: register = {1'b1, timer};
            6: register = {1'b1, random[31:0]};
            7: register = {1'b1, key};
            8: register = {1'b1, accumulator};
            9: register = {1'b1, in_count};
            10: register = {1'b1, out_count};
            11: register = {1'b1, RAM};
            12: register = {1'b1, FIFO};
            13: register = {1'b1, boot > 64'hffffffff ? 32'hffffffff : boot[31:0]};
            default: register = number >= 16 && number < 32 ? {1'b1, scratch[4'(number)]} : 0;
        endcase
    endfunction

    always_comb begin
        there = 1;
        value = 0;
        if (operation == READ_RAM) begin
            there = address < RAM;
            value = ram[WORD'(address)];
        end else if (operation == POP) begin
            value = out_words[place(out_first, 0)];
        end else if (operation == PEEK) begin
            case (element)
                0: value = stage;
                1: value = word;
                2: value = accumulator;
                3: value = shadow;
                4: value = key;
                5: value = timer;
                6: value = period;
                7: value = enable;
                8: value = pending;
                9: value = random[31:0];
                10: value = ram[WORD'(address)];
                11: value = scratch[4'(address)];
                12: value = in_words[PLACE'(address)];
                13: value = out_words[PLACE'(address)];
                14: value = in_first;
                15: value = in_count;
                16: value = out_first;
                17: value = out_count;
                18: value = random[63:32];
                19: value = boot[31:0];
                20: value = boot[63:32];
                default: there = 0;
            endcase
        end else {there, value} = register(address);
    end

    logic [31:0] tap_value;
    logic        tap_there;
    always_comb {tap_there, tap_value} = register(tap_number);
    tap #(.IDCODE(32'h1c0de0ff)) port (
        .tck, .tms, .tdi, .trst, .tdo, .cycle,
        .runs(tap_runs), .writes(tap_writes), .number(tap_number), .data(tap_data),
        .value(tap_there ? tap_value : 0)
    );

    // One cycle of the design.
    task automatic tick;
        cycle = cycle + 1;
        random = random ^ (random << 13);
        random = random ^ (random >> 7);
        random = random ^ (random << 17);
        if (boot != 0) begin
            // Each word from the one before it, so that nothing can take a short cut.
            ram[WORD'(cycle)] = (rotated(ram[WORD'(cycle)], 7) ^ random[31:0]) + ram[WORD'(cycle - 1)];
            boot = boot - 1;
            if (boot == 0) pending = pending | READY_BIT;
        end else begin
            if (period != 0) begin
                if (timer <= 1) begin
                    timer = period;
                    pending = pending | TIMER_BIT;
                end else timer = timer - 1;
            end
            case (stage)
                32'(IDLE):
                    if (in_count != 0) begin
                        word = in_words[place(in_first, 0)];
                        in_first = 32'(place(in_first, 1));
                        in_count = in_count - 1;
                        stage = 32'(MIX);
                        if (in_count == 0) pending = pending | INPUT_BIT;
                    end
                32'(MIX): begin
                    accumulator = rotated(accumulator, 5) ^ word;
                    shadow = rotated(shadow, 5) ^ word;
                    stage = 32'(MULTIPLY);
                end
                32'(MULTIPLY): begin
                    accumulator = accumulator * (key | 1);
                    shadow = shadow * (key | 1);
                    stage = 32'(STORE);
                end
                32'(STORE): begin
                    ram[WORD'(accumulator & (RAM / 2 - 1))] = ram[WORD'(accumulator & (RAM / 2 - 1))] + accumulator;
                    stage = 32'(OUTPUT);
                end
                // With a full FIFO it waits here, and the input fills up behind it.
                32'(OUTPUT):
                    if (out_count < FIFO) begin
                        out_words[place(out_first, out_count)] = accumulator;
                        out_count = out_count + 1;
                        pending = pending | OUTPUT_BIT;
                        stage = 32'(IDLE);
                    end
                // A value that is no stage hangs.
                default: ;
            endcase
            if (accumulator != shadow) pending = pending | FAULT_BIT;
        end
    endtask

    task automatic access;
        case (operation)
            WRITE_REGISTER:
                case (address)
                    2: enable = data;
                    3: pending = pending & ~data;
                    4: begin period = data; timer = data; end
                    6: random = random ^ ({32'b0, data} << 16);
                    7: key = data;
                    8: begin accumulator = data; shadow = data; end
                    default: if (address >= 16 && address < 32) scratch[4'(address)] = data;
                endcase
            WRITE_RAM: if (address < RAM) ram[WORD'(address)] = data;
            PUSH:
                if (!full) begin
                    in_words[place(in_first, in_count)] = data;
                    in_count = in_count + 1;
                end
            POP:
                if (!empty) begin
                    out_first = 32'(place(out_first, 1));
                    out_count = out_count - 1;
                end
            FLIP:
                case (element)
                    0: stage = stage ^ data;
                    1: word = word ^ data;
                    2: accumulator = accumulator ^ data;
                    3: shadow = shadow ^ data;
                    4: key = key ^ data;
                    5: timer = timer ^ data;
                    6: period = period ^ data;
                    7: enable = enable ^ data;
                    8: pending = pending ^ data;
                    9: random = random ^ {32'b0, data};
                    10: ram[WORD'(address)] = ram[WORD'(address)] ^ data;
                    11: scratch[4'(address)] = scratch[4'(address)] ^ data;
                    12: in_words[PLACE'(address)] = in_words[PLACE'(address)] ^ data;
                    13: out_words[PLACE'(address)] = out_words[PLACE'(address)] ^ data;
                    default: ;
                endcase
            default: ;
        endcase
    endtask

    always @(posedge clk) begin
        if (reset) begin
            cycle = 0;
            boot = boot_cycles;
            random = 64'h9e3779b97f4a7c15;
            stage = 32'(IDLE);
            word = 0;
            accumulator = 0;
            shadow = 0;
            key = 32'h85ebca6b;
            timer = 0;
            period = 0;
            enable = 0;
            pending = boot_cycles == 0 ? READY_BIT : 0;
            in_first = 0;
            in_count = 0;
            out_first = 0;
            out_count = 0;
            for (int n = 0; n < 16; n++) scratch[n] = 0;
            for (int n = 0; n < FIFO; n++) begin in_words[n] = 0; out_words[n] = 0; end
            for (int n = 0; n < RAM; n++) ram[n] = 0;
        end else if (advance) tick();
        else access();
    end
endmodule
