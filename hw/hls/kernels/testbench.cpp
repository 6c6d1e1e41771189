// Runs every golden frame and compares it, word for word and in its saturations. The data lie in the first argument's
// directory, or in the present one.
#include <cstdio>
#include <fstream>
#include <string>
#include <vector>

#include "goldens.hpp"
#include "top.hpp"

using patchloom::Word;

// A file as words, zeros behind its end up to `words`.
static std::vector<Word> words_of(const std::string &path, std::size_t words) {
    std::ifstream file(path, std::ios::binary);
    if (!file) std::fprintf(stderr, "%s cannot be read\n", path.c_str());
    std::vector<Word> data(words, Word(0));
    for (Word &word : data) {
        for (int i = 0; i < patchloom::BEAT_BYTES; ++i) {
            const int byte = file.get();
            word.range(8 * i + 7, 8 * i) = file ? byte : 0;
        }
    }
    return data;
}

static bool matches(const patchloom::Golden &golden, const std::string &directory) {
    using namespace patchloom;
    const std::vector<Word> program = words_of(directory + "program.bin", PROGRAM_WORDS);
    const std::vector<Word> input = words_of(directory + golden.input, INPUT_WORDS);
    const std::vector<Word> expected = words_of(directory + golden.output, OUTPUT_WORDS);
    std::vector<Word> output(OUTPUT_WORDS, Word(0));
    unsigned saturations = 0;
    const int error = patchloom_top(program.data(), input.data(), output.data(), golden.task, &saturations);
    int different = 0;
    for (std::size_t i = 0; i < output.size(); ++i) different += output[i] != expected[i];
    std::printf("%s: error %d, %d of %d words differ, %u saturations, expected %u\n", golden.input, error, different,
                OUTPUT_WORDS, saturations, golden.saturations);
    return error == 0 && different == 0 && saturations == golden.saturations;
}

int main(int count, char **arguments) {
    const std::string directory = count > 1 ? std::string(arguments[1]) + "/" : "";
    bool identical = true;
    for (const patchloom::Golden &golden : patchloom::GOLDENS) identical &= matches(golden, directory);
    std::printf(identical ? "identical\n" : "DIFFERENT\n");
    return identical ? 0 : 1;
}
