// A test access port (IEEE 1149.1). The board that it is on, which is model.cpp, lets a cycle of the design pass with each
// rising edge of TCK in Run-Test/Idle, and writes the register that Update-DR asks for.
//
//  instruction   its data register
//  1 IDCODE      32 bits
//  2 CYCLE       64 bits: the design's cycle, captured
//  3 REGISTER    40 bits: value 31:0, number 38:32, write 39. Captured is the value of the register whose number came last;
//                with the bit `write` the value that is shifted in is written to it
//  others BYPASS 1 bit

module tap #(
    parameter logic [31:0] IDCODE = 1
) (
    input  logic        tck,
    input  logic        tms,
    input  logic        tdi,
    input  logic        trst,
    output logic        tdo,
    output logic        runs,      // in Run-Test/Idle
    output logic        writes,    // in Update-DR, of a register to be written
    output logic [31:0] number,
    output logic [31:0] data,
    input  logic [31:0] value,     // of that register
    input  logic [63:0] cycle
);
    typedef enum logic [3:0] {
        RESET, IDLE,
        SELECT_DR, CAPTURE_DR, SHIFT_DR, EXIT1_DR, PAUSE_DR, EXIT2_DR, UPDATE_DR,
        SELECT_IR, CAPTURE_IR, SHIFT_IR, EXIT1_IR, PAUSE_IR, EXIT2_IR, UPDATE_IR
    } controller_t;
    localparam logic [3:0] IDENTIFY = 1, COUNT = 2, ACCESS = 3;

    controller_t state;
    logic [3:0]  instruction, ir;
    logic [63:0] dr;
    logic [6:0]  chosen;

    assign runs = state == IDLE;
    assign writes = state == UPDATE_DR && instruction == ACCESS && dr[39];
    // Until the falling edge in Update-DR it is the register of the scan before.
    assign number = {25'b0, state == UPDATE_DR ? dr[38:32] : chosen};
    assign data = dr[31:0];

    function automatic controller_t after(input controller_t from, input logic mode);
        case (from)
            RESET:      after = mode ? RESET : IDLE;
            IDLE:       after = mode ? SELECT_DR : IDLE;
            SELECT_DR:  after = mode ? SELECT_IR : CAPTURE_DR;
            CAPTURE_DR: after = mode ? EXIT1_DR : SHIFT_DR;
            SHIFT_DR:   after = mode ? EXIT1_DR : SHIFT_DR;
            EXIT1_DR:   after = mode ? UPDATE_DR : PAUSE_DR;
            PAUSE_DR:   after = mode ? EXIT2_DR : PAUSE_DR;
            EXIT2_DR:   after = mode ? UPDATE_DR : SHIFT_DR;
            UPDATE_DR:  after = mode ? SELECT_DR : IDLE;
            SELECT_IR:  after = mode ? RESET : CAPTURE_IR;
            CAPTURE_IR: after = mode ? EXIT1_IR : SHIFT_IR;
            SHIFT_IR:   after = mode ? EXIT1_IR : SHIFT_IR;
            EXIT1_IR:   after = mode ? UPDATE_IR : PAUSE_IR;
            PAUSE_IR:   after = mode ? EXIT2_IR : PAUSE_IR;
            EXIT2_IR:   after = mode ? UPDATE_IR : SHIFT_IR;
            UPDATE_IR:  after = mode ? SELECT_DR : IDLE;
        endcase
    endfunction

    always @(posedge tck or posedge trst) begin
        if (trst) state = RESET;
        else begin
            case (state)
                CAPTURE_IR: ir = 4'b0001;
                SHIFT_IR: ir = {tdi, ir[3:1]};
                CAPTURE_DR:
                    case (instruction)
                        IDENTIFY: dr = {32'b0, IDCODE};
                        COUNT: dr = cycle;
                        ACCESS: dr = {25'b0, chosen, value};
                        default: dr = 0;
                    endcase
                SHIFT_DR:
                    case (instruction)
                        IDENTIFY: dr = {32'b0, tdi, dr[31:1]};
                        COUNT: dr = {tdi, dr[63:1]};
                        ACCESS: dr = {24'b0, tdi, dr[39:1]};
                        default: dr = {63'b0, tdi};
                    endcase
                default: ;
            endcase
            state = after(state, tms);
        end
    end

    // What others see changes with the falling edge.
    always @(negedge tck or posedge trst) begin
        if (trst) begin
            instruction = IDENTIFY;
            chosen = 0;
            tdo = 0;
        end else case (state)
            RESET: instruction = IDENTIFY;
            UPDATE_IR: instruction = ir;
            UPDATE_DR: if (instruction == ACCESS) chosen = dr[38:32];
            SHIFT_IR: tdo = ir[0];
            SHIFT_DR: tdo = dr[0];
            default: ;
        endcase
    end
endmodule
